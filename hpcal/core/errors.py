"""The exceptions of hpcal, one tree.

::

    HpcalError
    ├── InputError                 exit 2: what the user gave cannot be used
    │   ├── ConfigurationError     a campaign, site or stage file
    │   ├── StructureError         a structure that is no structure
    │   ├── FormatError            a data file that cannot be read
    │   └── PluginError            an unknown part, or one whose package is missing
    ├── CampaignFailed             exit 1: the campaign cannot go on
    ├── WorkersLost                exit 1: the workers cannot be reached any more
    ├── CampaignHeld               exit 3: another controller holds it
    ├── Interrupted                exit 130: stopped in good order
    ├── StoreError                 the store refused a write or cannot be read
    │   ├── TransitionError        a state change that the tables do not allow
    │   └── FencedError            this controller has lost its lease
    └── TaskFailure                an attempt failed, with its failure class

A message says what failed, the value, the likely cause and what to do.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class FailureClass(StrEnum):
    """Why something failed, which decides what is done about it (docs/reference/failures.md)."""

    INPUT = "input"
    PHYSICS = "physics"
    RESOURCE = "resource"
    NODE = "node"
    BUG = "bug"


class HpcalError(Exception):
    """Base of everything that hpcal raises on purpose."""

    exit_code: ClassVar[int] = 1


class InputError(HpcalError):
    """What the user gave cannot be used."""

    exit_code = 2


class ConfigurationError(InputError):
    """A campaign, site or stage file is wrong."""


class StructureError(InputError):
    """Numbers that do not describe a structure."""


class FormatError(InputError):
    """A data file that cannot be read as what it claims to be."""


class PluginError(InputError):
    """An unknown plugin, or one whose package is not installed."""


class CampaignFailed(HpcalError):
    """The campaign cannot go on; the message holds the cause."""


class WorkersLost(HpcalError):
    """The workers of a pool cannot be reached any more; another controller can go on."""


class CampaignHeld(HpcalError):
    """Another live controller holds the campaign."""

    exit_code = 3


class Interrupted(HpcalError):
    """Stopped in good order by a signal or by ``hpcal stop``."""

    exit_code = 130


class StoreError(HpcalError):
    """The store refused a write or cannot be read."""


class TransitionError(StoreError):
    """A state change that the transition tables do not allow."""


class FencedError(StoreError):
    """Another controller has taken the campaign over; this one may not write any more."""


class TaskFailure(HpcalError):
    """An attempt failed for a reason that has a class."""

    def __init__(self, failure_class: FailureClass, message: str) -> None:
        super().__init__(message)
        self.failure_class = failure_class


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that there was not enough memory, on the host or on a GPU.

    PyTorch has a class of its own for GPUs, and on the host raises a plain RuntimeError.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
