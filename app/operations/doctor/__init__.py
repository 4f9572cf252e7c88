"""`bdlab doctor`: looks at everything that the service needs, and says how to mend what is wrong."""
