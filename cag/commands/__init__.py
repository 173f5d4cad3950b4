"""The commands of `cag`, by what they are about; `cag.cli` puts them together."""

from cag.runtime.interrupts import end_at_once

end_at_once()
