"""Commands that run the server's code on this machine, with the settings of the service.

They import it inside functions, so that the `bdlab` command loads none of it otherwise.
"""
