"""Which files are images: their extensions, and what reads each format."""

import importlib
import os
from typing import NamedTuple

from absl import logging
from PIL import Image, features


class Format(NamedTuple):
  """One format of image files.

  Attributes:
    name: Pillow's; empty for a format that is not Pillow's.
    extensions: separated by blanks.
    feature: of `PIL.features`, which a build of Pillow may lack.
    plugin: module of a package that teaches Pillow the format.
    needs: what to install where neither is there.
  """

  name: str
  extensions: str
  feature: str = ''
  plugin: str = ''
  needs: str = ''


FORMATS = (
  Format('JPEG', '.jpg .jpeg .jpe .jfif .mpo'),
  Format('PNG', '.png .apng'),
  Format('BMP', '.bmp'),
  Format('GIF', '.gif'),
  Format('WEBP', '.webp', 'webp', needs='a build with WebP'),
  Format('TIFF', '.tif .tiff'),
  Format('PPM', '.ppm .pgm .pbm .pnm'),
  Format(
    'JPEG2000',
    '.jp2 .j2k .j2c .jpc .jpx .jpf',
    'jpg_2000',
    needs='a build with OpenJPEG',
  ),
  Format(
    'AVIF',
    '.avif .avifs',
    'avif',
    'pillow_avif',
    needs='version 11.3 or pillow-avif-plugin',
  ),
  Format(
    'HEIF',
    '.heic .heif .heics .heifs .hif',
    plugin='pillow_heif',
    needs='the plug-in pillow-heif (pip install pillow-heif)',
  ),
  Format('', '.npy'),  # uint8 [h, w] or [h, w, c]
)

# Other pictures and films, which a person may expect to be read.
OTHERS = frozenset(
  '.3fr .3gp .ai .arw .avi .bpg .cr2 .cr3 .crw .cur .dcm .dcr .dds .dib .dicom '
  '.djvu .dng .emf .eps .erf .exr .fff .fit .fits .flif .flv .hdr .icns .ico '
  '.iiq .j2p .jls .jph .jxl .jxr .k25 .kdc .m2ts .m4v .mef .mha .mhd .mkv .mos '
  '.mov .mp4 .mpeg .mpg .mrw .mts .ndpi .nef .nii .nrrd .nrw .ogv .orf .pcx '
  '.pdf .pef .pfm .psb .psd .qoi .raf .ras .raw .rw2 .rwl .sgi .sr2 .srf .srw '
  '.svg .svgz .svs .tga .vob .wdp .webm .wmf .wmv .x3f .xbm .xcf '
  '.xpm'.split()
)

_HEIC = (b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1')
# How files begin that bear the name of an image without being one.
_BEGINNINGS = {
  b'\xff\x0a': 'a JPEG XL image',
  b'\0\0\0\x0cJXL ': 'a JPEG XL image',
  b'version https://git-lfs': 'a Git LFS pointer; run git lfs pull',
  b'8BPS': 'a Photoshop file',
  b'%PDF': 'a PDF file',
  b'%!PS': 'a PostScript file',
  b'PK\3\4': 'a zip file',
  b'\x1f\x8b': 'a gzip file',
}
_TEXTS = {b'<svg': 'an SVG drawing', b'<html': 'an HTML page'}
_TEXTS |= {b'<!doctype html': 'an HTML page', b'<?xml': 'an XML file'}
_SNIFFED = 1024  # bytes that an SVG drawing may begin its element in


def _is_readable(kind: Format) -> bool:
  """Whether Pillow reads a format here; loads the plug-in that does."""
  if not kind.feature and not kind.plugin:
    return True
  known = {**features.modules, **features.codecs, **features.features}
  if kind.feature in known and features.check(kind.feature):
    return True
  if not kind.plugin:
    return False
  try:
    plugin = importlib.import_module(kind.plugin)
    if hasattr(plugin, 'register_heif_opener'):
      plugin.register_heif_opener()
  except ModuleNotFoundError:
    # Pillow's own openers are there without the libraries that they need.
    return not kind.feature and kind.name in Image.OPEN
  except Exception as error:  # an optional package must not stop anything
    logging.warning('%s cannot be loaded: %s', kind.plugin, error)
    return False
  return kind.name in Image.OPEN


READABLE = tuple(kind for kind in FORMATS if _is_readable(kind))
# What Pillow may take a file for, whatever its name: among the others is
# PostScript, which runs another program.
PILLOW = tuple(kind.name for kind in READABLE if kind.name)
# Files that a folder is searched for.
EXTENSIONS = tuple(ext for kind in READABLE for ext in kind.extensions.split())
MISSING = {
  ext: kind.needs
  for kind in FORMATS
  if kind not in READABLE
  for ext in kind.extensions.split()
}
_IMAGES = tuple(os.fsencode(extension) for extension in EXTENSIONS)
_LONGEST = max(map(len, EXTENSIONS))


def is_image(name: bytes) -> bool:
  """Whether a name has one of the `EXTENSIONS`, in any case of letters."""
  return name[-_LONGEST:].lower().endswith(_IMAGES)


def is_picture(extension: str) -> bool:
  """Whether an extension in lower case is that of a picture or film."""
  return extension in MISSING or extension in OTHERS


def content_name(data: bytes) -> str:
  """Names what a file holds that Pillow does not take for an image.

  Args:
    data: the file, or its beginning.

  Returns:
    Such as 'an HTML page'; empty if nothing is recognised.
  """
  if not data.strip(b'\0'):
    return 'only zeros' if data else 'an empty file'
  if data[4:8] == b'ftyp':
    return _media_name(data[8:64])
  start = data[:_SNIFFED].lstrip(b'\xef\xbb\xbf \t\r\n')
  for text, name in _TEXTS.items():
    if start.lower().startswith(text):
      svg = b'<svg' in start
      return _TEXTS[b'<svg'] if svg and name == 'an XML file' else name
  for text, name in _BEGINNINGS.items():
    if start.startswith(text):
      return name
  return ''


def _media_name(brands: bytes) -> str:
  """Names a file of the ISO base media format by its brands."""
  name = 'a film'
  if b'avif' in brands or b'avis' in brands:
    name, extension = 'an AVIF image', '.avif'
  elif brands[:4] in _HEIC:
    name, extension = 'a HEIC image', '.heic'
  elif brands.startswith(b'crx '):
    return 'a raw image of a camera'
  else:
    return name
  if extension in MISSING:
    return f'{name}; Pillow needs {MISSING[extension]}'
  return f'{name}, cut off or damaged'
