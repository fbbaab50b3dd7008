"""What orchestration takes beside the work, on whole engines, without tao-flows and with it. See ``__main__.py``."""
