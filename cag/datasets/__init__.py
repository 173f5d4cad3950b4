"""Images and label maps: raw layouts, how they are prepared, and the prepared form."""
