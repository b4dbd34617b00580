"""The CPU platform: what verl and vLLM need to run their real stack on a machine without an accelerator.

Active only under ``VERL_PLATFORM=cpu``. Wherever verl or vLLM has a registry, it is used; each remaining patch
is guarded by a check of what it patches and says which upstream behaviour it works around.
"""
