from hypothesis import settings

# the same examples in every run: a check that fails must fail for the change that broke it
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
