"""The app with a model that only pretends: python -m tests.tui.demo"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from exl2_tui.app import run
from tests.tui.fakes import TypingService

ANSWERS = [
    """Quicksort in three bullets:

- **Pick a pivot** and split the list into smaller and larger parts.
- **Sort both parts** the same way; parts of one item are already sorted, so the recursion ends there by itself.
- **Join them**: smaller, pivot, larger. On average *O(n log n)*.

```python
def quicksort(xs):
    \"\"\"Not in place.\"\"\"
    if len(xs) < 2:
        return xs
    p, *rest = xs
    lo = [x for x in rest if x < p]
    hi = [x for x in rest if x >= p]
    return quicksort(lo) + [p] + quicksort(hi)  # 3 lists
```

Call it with `quicksort([3, 1, 2])`.
""",
    """## How they compare

| algorithm | average | worst | stable |
|---|---|---|---|
| quicksort | n log n | n² | no |
| mergesort | n log n | n log n | yes |
| heapsort | n log n | n log n | no |

> The worst case needs bad luck with the pivot, for example an already sorted list with the first item as pivot.

1. Choose the pivot at random,
2. or take the median of three.
   - It costs two comparisons.
""",
    "<think>The person wants a short answer. One sentence is enough.</think>\n\nA heap is a tree in an array.",
]

if __name__ == "__main__":
    run(None, service_factory=lambda post: TypingService(post, ANSWERS))
