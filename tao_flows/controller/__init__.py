"""The TAO controller: where and when a task should run, and why. Wholly pure: no clock, no files, no randomness.

A request is read by :func:`tao_flows.controller.parse.parse_request` and answered by
:func:`tao_flows.controller.decide.decide`, or without the reasons, and in a fraction of the time, by
:func:`tao_flows.controller.choose.choose`.
"""
