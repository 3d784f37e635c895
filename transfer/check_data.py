"""What a data set holds and how its views look, before anything long runs."""

from typing import Any

from input_pipeline import feed, mode, survey
from input_pipeline.views import View
from training import screen
from training.figures import to_png
from training.lock import releasing
from training.metrics import write_json
from training.state import Figure
from training.workdir import open_workdir


@releasing()
def check_data(config: Any, workdir: str) -> dict[str, Any]:
  """Surveys the images that a config names and draws their views.

  Args:
    config: any config of a training; read here: `data`, `views`, `seed`,
      `check_images`.
    workdir: gets summary.json and images/views.png.

  Returns:
    The summary: `survey.survey` of every split, and which `data.mode` would be
    chosen on this machine.

  Raises:
    UnreadableError: no image can be read.
    ValueError, FileNotFoundError: see `feed.open_sources`.
  """
  train, test = feed.open_sources(config.data)
  channels = feed.channels_of(config.data, train)
  size = config.data.image_size
  views = {n: View(**{'size': size, **v}) for n, v in config.views.items()}
  summary = {}
  for name, source in dict(train=train, test=test).items():
    if source is not None:
      found = survey.survey(source, channels, images=config.check_images)
      screen.note(f'{name}: {survey.as_text(found, training=name == "train")}')
      summary[name] = found
  chosen, why = mode.choose(config.data.mode, train, channels)
  summary['mode'] = f'{chosen}: {why}'
  screen.note(f'mode: {summary["mode"]}')
  workdir = open_workdir(workdir)
  write_json(workdir / 'summary.json', summary)
  images, titles = survey.view_sheet(
    train, views, channels=channels, seed=config.seed
  )
  picture = workdir / 'images' / 'views.png'
  picture.parent.mkdir(parents=True, exist_ok=True)
  picture.write_bytes(to_png(Figure(images, titles)))
  return summary
