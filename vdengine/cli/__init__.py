"""The verbs of `vdengine`: arguments in, text out, an exit status. What they do is in the rooms below."""
