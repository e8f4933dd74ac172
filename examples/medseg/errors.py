"""The two things that can be wrong; the command lines print what they say, without a traceback."""


class DataError(ValueError):
    """Data is missing, damaged or not what it should be; the message names the file and the remedy."""


class RunError(ValueError):
    """What was asked does not fit the output folder, the network or the devices."""
