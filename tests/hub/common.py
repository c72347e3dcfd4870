"""What several tests of the Hub share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

AsUser = Callable[..., HfApi]

CARD = """---
license: apache-2.0
base_model: [ann/one, ann/two]
base_model_relation: merge
library_name: transformers
tags: [merge]
---
# A merge
"""


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code
