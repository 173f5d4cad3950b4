"""The pipeline's stages, one program each; run as `python -m stages.NAME`."""

from cag.runtime.interrupts import end_at_once

end_at_once()
