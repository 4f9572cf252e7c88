"""`bdlab doctor`: checks everything that the service needs, and says how to fix what is wrong."""
