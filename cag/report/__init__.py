"""One HTML page that shows a run: tables, figures, pictures and an explorer in one file."""
