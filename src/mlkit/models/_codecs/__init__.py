"""The formats of other libraries; each is imported when a model of that kind is saved or loaded."""
