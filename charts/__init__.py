"""Pictures for people: contact sheets and charts, drawn with Pillow alone."""
