"""What a task is expected to cost, and how sure that is: learned by task, pool and size from its settled runs."""

from tao_flows.profiles.cache import PROFILE_TTL_S, Profiles
from tao_flows.profiles.cold import Described, complete, explored
from tao_flows.profiles.learned import Estimate, Expectation, Profile, expect, learn

__all__ = [
    "PROFILE_TTL_S",
    "Described",
    "Estimate",
    "Expectation",
    "Profile",
    "Profiles",
    "complete",
    "expect",
    "explored",
    "learn",
]
