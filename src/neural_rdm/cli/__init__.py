"""Floor 8: from arguments to a command: reading them, refusing, launching jobs of a sweep, stopping well.

For the commands alone. Begin with `app.main`, which every command calls.
"""

from neural_rdm.core.signals import leave_quietly

leave_quietly()
