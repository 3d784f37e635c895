"""Optimiser groups in words: which parameters, how many, what happens."""

from collections.abc import Mapping, Sequence
from typing import Any

from training.optim import NEVER, Rule, Rules
from training.screen import columns

KINDS = 4  # of parameters that are named


def overview(
  sizes: Mapping[str, int], groups: Mapping[str, int], rules: Rules
) -> str:
  """A line for all groups that are optimised alike but for a factor.

  Layers whose rates differ by their depth alone share a line, which states the
  range of the factors.

  Args:
    sizes: {parameter path: count}.
    groups: {parameter path: number of its rule}, see `optim.assign`.
    rules: the method's rules.

  Returns:
    Lines, none wider than `screen.columns()`.
  """
  together: dict[Any, list[int]] = {}
  for number in sorted(set(groups.values())):
    together.setdefault(_treatment(rules[number][1]), []).append(number)
  decays = any(
    rules[i][1].decay for i in set(groups.values()) if _moves(rules[i][1])
  )
  lines = []
  for numbers in together.values():
    names = [name for name, group in groups.items() if group in numbers]
    count = sum(sizes[name] for name in names)
    chosen = [rules[number][1] for number in numbers]
    end = f': {count:,} parameters, {_how(chosen, decays)}'
    words = _fit(label(names, groups), columns() - 2 - len(end))
    lines.append(_fit(f'  {words}{end}', columns()))
  return '\n'.join(lines)


def _moves(rule: Rule) -> bool:
  return rule.trainable_from != NEVER


def _treatment(rule: Rule) -> Any:
  """What makes rules equal for a reader; schedules count by identity."""
  if not _moves(rule):
    return NEVER
  return (
    id(rule.lr) if callable(rule.lr) else rule.lr,
    bool(rule.decay),
    (
      rule.trainable_from,
      rule.optimizer,
    ),
  )


def _how(rules: Sequence[Rule], decays: bool) -> str:
  """'trained' or 'frozen', and what is special."""
  first = rules[0]
  if not _moves(first):
    return 'frozen'
  words = ['trained']
  if first.trainable_from:
    words = [f'trained from step {first.trainable_from}']
  if first.optimizer:
    words.append(f'by {first.optimizer}')
  if decays and not first.decay:
    words.append('no decay')
  low, high = min(r.scale for r in rules), max(r.scale for r in rules)
  if low < high:
    words.append(f'rate x {low:.2g} to {high:.2g} by depth')
  return ', '.join(words)


def label(names: Sequence[str], every: Mapping[str, Any]) -> str:
  """What parameters have in common, in words.

  Args:
    names: paths of some parameters.
    every: paths of all.

  Returns:
    Such as 'decoder', 'encoder/patch_embed', 'encoder without patch_embed,
    projector' or 'encoder, head (bias, scale)'.
  """
  chosen, parts, split = set(names), [], False
  tops = dict.fromkeys(name.partition('/')[0] for name in names)
  for top in sorted(tops, key=lambda top: top != 'encoder'):
    members = [n for n in every if n.partition('/')[0] == top]
    whole, cut = _children(members, chosen)
    missing = _children(members, set(members) - chosen)[0]
    touched = whole + cut
    if cut:
      split = True
      one = cut == touched and len(cut) == 1 and cut[0]
      parts.append(f'{top}/{cut[0]}' if one else top)
    elif not missing:
      parts.append(top)
    elif len(missing) < len(whole):
      named = [child for child in missing if child]
      # Tokens and the like stand right below the top.
      named += [
        n.split('/')[1]
        for n in members
        if n not in chosen and n.count('/') == 1
      ]
      parts.append(f'{top} without {_some(named)}')
    else:
      parts += _first(
        [f'{top}/{child}' for child in whole if child]
        + [n for n in members if n in chosen and n.count('/') < 2]
      )
  text = ', '.join(parts)
  return f'{text} ({_some(_kinds(names))})' if split else text


def _children(
  members: Sequence[str], chosen: set[str]
) -> tuple[list[str], list[str]]:
  """Second parts of paths of which all parameters are chosen, or some."""
  below: dict[str, list[bool]] = {}
  for name in members:
    parts = name.split('/')
    child = parts[1] if len(parts) > 2 else ''  # right below the top
    below.setdefault(child, []).append(name in chosen)
  whole = [child for child, hits in below.items() if all(hits)]
  cut = [c for c, hits in below.items() if any(hits) and not all(hits)]
  return whole, cut


def _kinds(names: Sequence[str]) -> list[str]:
  """Last parts of paths, the commonest first."""
  last = [name.rpartition('/')[2] for name in names]
  return sorted(set(last), key=lambda kind: (-last.count(kind), kind))


def _first(words: Sequence[str]) -> list[str]:
  return [*words[:KINDS], *['...'] * (len(words) > KINDS)]


def _some(words: Sequence[str]) -> str:
  return ', '.join(_first(words))


def _fit(text: str, width: int) -> str:
  width = max(width, 12)
  return text if len(text) <= width else f'{text[: width - 3]}...'
