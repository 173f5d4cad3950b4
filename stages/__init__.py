"""The pipeline's stages, one program each; run as `python -m stages.NAME`."""

from cag.runtime.start import prepare

prepare()
