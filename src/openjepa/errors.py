"""The errors a user can meet, and the exit code of each.

Every message names the file or option, the value, what is allowed and the fix.
"""


class UserError(ValueError):
    """A mistake in the options or the configuration."""

    exit_code = 2


class DataError(UserError):
    """A data set that is missing, empty, broken or unfit for what was asked."""

    exit_code = 3


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, of another architecture, or of other data."""

    exit_code = 4


class NonFiniteError(UserError):
    """The loss became NaN or infinite; nothing was updated."""

    exit_code = 5


class CollapseError(UserError):
    """The features became constant, or at the end of a run still tell nothing but the position."""

    exit_code = 6


class FirstProcessFailed(Exception):
    """The first of several processes has failed, and tells why; the others end in silence."""

    exit_code = 0


class Preempted(Exception):
    """The process was asked to stop; the run was saved and goes on with --resume."""

    exit_code = 75
