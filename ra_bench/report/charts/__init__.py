"""One module a family of figures. Each has `figures(material)`: figures, and what the rows do not allow."""
