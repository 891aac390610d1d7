"""Look at the packaged sample, and see how far a simple baseline gets: what followed the last item before?"""

from collections import Counter, defaultdict
from itertools import pairwise

from catalex import sample
from catalex.artifacts import read_parquet

for domain in sample.DOMAINS:
    items = read_parquet(sample.path() / domain / "items.parquet")
    events = read_parquet(sample.path() / domain / "interactions.parquet")
    titles = items["title"].to_pylist()

    histories = defaultdict(list)
    for user, item in zip(events["user_id"].to_pylist(), events["item_id"].to_pylist(), strict=True):
        histories[user].append(item)
    print(f"{domain}: {len(histories)} customers, {len(titles)} products, {events.num_rows} purchases")
    print("  a customer bought", " | ".join(titles[item] for item in histories[0][:4]), "...")

    # Leave-one-out: the last purchase is the test target, the one before it is kept for validation.
    following = defaultdict(Counter)
    for history in histories.values():
        for item, after in pairwise(history[:-2]):
            following[item][after] += 1
    hits = 0
    for history in histories.values():
        recommended = [item for item, _ in following[history[-2]].most_common(10)]
        hits += history[-1] in recommended
    print(f"  transitions: Recall@10 {hits / len(histories):.3f}")
