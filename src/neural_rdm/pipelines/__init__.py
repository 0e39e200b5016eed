"""Floor 4: what others trained: a pipeline of diffusers, read as a network, texts, a first stage and a process of ours.

Begin with `folder`: it says which pipelines there are, and what their files tell.
"""
