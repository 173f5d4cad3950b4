"""The commands of `cag`, by what they are about; `cag.cli` puts them together."""

from cag.runtime.start import prepare

prepare()
