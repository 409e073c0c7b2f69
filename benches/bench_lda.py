"""Documents to topics: this project beside tomotopy, gensim, scikit-learn and WarpLDA, in one go.

Question: how many tokens a second of CPU does a sweep draw anew, beside a peer's, and how soon are
held-out documents as likely as a peer makes them?

Method: corpora are prepared once (``topic_corpora.py``, ``topic_truth.py``; kept in ``.bench/``),
and all contenders learn the same tokens: ours a text, peers the same as arrays. Each runs in a
process of its own, on one thread, with the same symmetric priors, which stay; ours also with priors
that are fitted.

* Quality: each contender runs once, and its topics are judged after each number of ``--sweeps`` by
  one evaluator (``completion.py``). Ours, as WarpLDA, says its topics at the end alone, so it is
  run for each number. ``--seconds-max`` ends slow ones early.
* Speed: ours, tomotopy and WarpLDA run FIRST sweeps with nothing judged; rounds are interleaved, so
  that a noisy neighbour meets all of them, and medians are shown. Without rounds, times are those
  of the runs for quality.

Units: CPU and wall time are of sweeps. What stands before the first (reading text, lists of words,
topics drawn at random) is told apart as "before". M tokens/s are of one second of CPU, over the
first FIRST sweeps, and in the 10th and the 30th alone. "To tomotopy's" is the CPU time to the
likelihood that tomotopy has after FIRST sweeps (or its last), between two judged numbers of sweeps
by a straight line. Memory is the peak of the process. Kernels are compiled by a run that is not
shown.

Two lanes must learn what one does, to the count, and counts must add up to the tokens.

Budget (one lane, IMDB): 15 M tokens/s at the 30th sweep with 100 topics, 12 M with 1,000; the first
30 sweeps in a 1.2th and a sixth of tomotopy's time; at most 4 V K + 10 N bytes + 300 MB; likelihood
no worse than tomotopy's from 20 CPU seconds on with 100 topics, tomotopy's in a third of its time
with 1,000, and within 0.04 a token at equal sweeps. Two lanes 1.6 times as fast as one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

import completion
import line_chart
import topic_corpora
import topic_ours
import topic_peers
import topic_truth
import warplda
from bench_ctr import BENCH, machine
from topic_corpora import Corpus
from topic_peers import Setting

# Sweeps whose time is compared, and those whose own speed is said.
FIRST = 30
SAID = (10, 30)
SWEEPS = (10, 30, 100)
# The sum of alpha over topics, on each corpus.
ALPHA_SUMS = {"imdb": 2.0, "news": 10.0}
# CPU seconds at which likelihoods are compared.
EQUAL = (1, 2, 5, 10, 20, 50, 100, 200)
# Topics that are shown, and words of each.
TOPICS_SHOWN = 20
WORDS_SHOWN = 10
OURS, FITTED = "streamlearn", "streamlearn, priors fitted"
# The others take minutes a sweep.
TIMED = (OURS, "tomotopy", "WarpLDA")
EXAMPLES = """examples:
  bench_lda.py --data ../shared/data --peer tomotopy
  bench_lda.py --data ../shared/data --corpora imdb --topics 1000 --peer tomotopy --rounds 3
  bench_lda.py --data ../shared/data --corpora news --sweeps 1,3,10,30,100 --seconds-max 100 \\
      --peer tomotopy --peer gensim --peer scikit-learn --peer warplda=PATH
  bench_lda.py --generated 100000 --words 30000 --truth-topics 100 --peer tomotopy
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What a contender did in one run.

    Attributes
    ----------
    seconds, cpu_seconds : list of float
        Of each sweep.
    before_seconds, before_cpu_seconds : float
        Before the first.
    peak_rss_bytes : int
    curve : list of dict
        After each judged sweep: ``sweep``, ``seconds`` and ``cpu_seconds`` of all until then,
        ``log_likelihood``.
    words : list of str
        The most likely words of topics, largest topics first where sizes are known.
    """

    seconds: list[float]
    cpu_seconds: list[float]
    before_seconds: float
    before_cpu_seconds: float
    peak_rss_bytes: int
    curve: list[dict[str, Any]]
    words: list[str]


def ours(
    corpus: Corpus, setting: Setting, folder: Path, *, lanes: int = 1, optimize: str = "none"
) -> Result:
    """Let ours learn, once for each number of sweeps, and judge it."""
    judged, words = {}, []
    told: dict[str, Any] = {}
    for count in setting.sweeps:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            one = replace(setting, sweeps=(count,))
            told = topic_ours.train(corpus, one, Path(out), lanes=lanes, optimize=optimize)
            model = topic_ours.read(Path(out) / "model.npz", corpus)
        judged[count] = _judge(corpus, model.phi, model.alpha)
        words = top_words(model.phi[np.argsort(-model.sizes, kind="stable")], corpus)
        if sum(told["sweep_cpu_seconds"]) >= setting.seconds_max:
            break
    return _result(told, judged, words)


def of_peer(
    learn: Callable[[Path], dict[str, Any]], corpus: Corpus, setting: Setting, folder: Path
) -> Result:
    """Let a peer learn, and judge it.

    Parameters
    ----------
    learn : callable
        Given a folder for topics, as `topic_peers.run`.
    """
    judged, words = {}, []
    with tempfile.TemporaryDirectory(dir=folder) as out:
        told = learn(Path(out))
        for count, path in sorted(told["topics"].items()):
            phi = np.load(path)
            judged[count] = _judge(corpus, phi, setting.alpha)
            words = top_words(phi, corpus)
    return _result(told, judged, words)


def _judge(corpus: Corpus, phi: np.ndarray, alpha: np.ndarray | float) -> float:
    return completion.log_likelihood(phi, alpha, corpus.held_lens, corpus.held_w)


def _result(told: dict[str, Any], judged: dict[int, float], words: list[str]) -> Result:
    wall = list(accumulate(told["sweep_seconds"]))
    cpu = list(accumulate(told["sweep_cpu_seconds"]))
    curve = [
        {
            "sweep": count,
            "seconds": wall[count - 1],
            "cpu_seconds": cpu[count - 1],
            "log_likelihood": found,
        }
        for count, found in judged.items()
    ]
    return Result(
        told["sweep_seconds"],
        told["sweep_cpu_seconds"],
        told["prepare_seconds"],
        told["prepare_cpu_seconds"],
        told["peak_rss_bytes"],
        curve,
        words,
    )


def top_words(phi: np.ndarray, corpus: Corpus) -> list[str]:
    """Return the most likely words of the first topics, a line each."""
    best = np.argsort(-phi[:TOPICS_SHOWN], axis=1, kind="stable")[:, :WORDS_SHOWN]
    return [" ".join(corpus.words[row].tolist()) for row in best]


def contenders(
    corpus: Corpus, folder: Path, lanes: list[int], peers: dict[str, Path | None]
) -> dict[tuple[str, int], Callable[[Setting], Result]]:
    """Return who learns a corpus, by name and lanes: what is called with a setting."""
    found: dict[tuple[str, int], Callable[[Setting], Result]] = {}
    for count in lanes:
        found[OURS, count] = partial(ours, corpus, folder=folder, lanes=count)
    if lanes:
        found[FITTED, lanes[0]] = partial(
            ours, corpus, folder=folder, lanes=lanes[0], optimize="both"
        )
    for name, program in peers.items():
        found[name, 1] = partial(_peer, name, program, corpus, folder)
    return found


def _peer(
    name: str, program: Path | None, corpus: Corpus, folder: Path, setting: Setting
) -> Result:
    def learn(out: Path) -> dict[str, Any]:
        if program is not None:
            return warplda.run(program, corpus, setting, out)
        return topic_peers.run(name, corpus.path, setting, out)

    return of_peer(learn, corpus, setting, folder)


def compare(
    corpus: Corpus,
    setting: Setting,
    who: dict[tuple[str, int], Callable[[Setting], Result]],
    rounds: int,
) -> list[dict[str, Any]]:
    """Compare the contenders on a corpus; return a row for each.

    Parameters
    ----------
    corpus : Corpus
    setting : Setting
    who : dict
        See `contenders`.
    rounds : int
        Timed ones.
    """
    for (name, _), run in who.items():
        if name in (OURS, FITTED):
            # kernels are compiled, or loaded, in a run of the same kind
            run(replace(setting, sweeps=(1,)))
    quality = {}
    for (name, count), run in who.items():
        quality[name, count] = run(setting)
        for at in quality[name, count].curve:
            print(
                f"{corpus.name}  {setting.topics} topics  {name} ({count}): sweep {at['sweep']}, "
                f"{at['cpu_seconds']:.1f} CPU s, {at['log_likelihood']:.4f}",
                file=sys.stderr,
            )
    _check(quality)
    timed: dict[tuple[str, int], list[Result]] = {key: [] for key in who}
    short = replace(setting, sweeps=(FIRST,))
    for number in range(rounds):
        for (name, count), run in who.items():
            if name in TIMED:
                timed[name, count].append(run(short))
                spent = sum(timed[name, count][-1].cpu_seconds)
                print(
                    f"round {number + 1}/{rounds}  {corpus.name}  {setting.topics} topics  "
                    f"{name} ({count}): {spent:.1f} CPU s",
                    file=sys.stderr,
                )
    rows = [
        _row(corpus, setting, *key, told, timed[key] or [told]) for key, told in quality.items()
    ]
    return _beside(rows)


def _check(quality: dict[tuple[str, int], Result]) -> None:
    """Complain if lanes change what ours learns."""
    for (name, lanes), told in quality.items():
        first = quality.get((OURS, 1))
        if name == OURS and first is not None:
            judged, expected = ([at["log_likelihood"] for at in r.curve] for r in (told, first))
            if (judged, told.words) != (expected, first.words):
                raise RuntimeError(f"{lanes} lanes do not learn what one does: {judged}")


def _row(
    corpus: Corpus, setting: Setting, name: str, lanes: int, told: Result, timed: list[Result]
) -> dict[str, Any]:
    """Return what is known of a contender: medians of its timed runs, and its curve."""
    tokens = len(corpus.w)
    count = min(FIRST, *(len(one.cpu_seconds) for one in timed))

    def median(of: Callable[[Result], float]) -> float:
        return float(statistics.median(of(one) for one in timed))

    cpu = median(lambda one: sum(one.cpu_seconds[:count]))
    wall = median(lambda one: sum(one.seconds[:count]))
    return {
        "corpus": corpus.name,
        "documents": len(corpus.lens),
        "tokens": tokens,
        "words": len(corpus.words),
        "topics": setting.topics,
        "alpha": setting.alpha,
        "beta": setting.beta,
        "name": name,
        "lanes": lanes,
        "first_sweeps": count,
        "first_cpu_seconds": cpu,
        "first_seconds": wall,
        "first_cpu_seconds_of_rounds": [sum(one.cpu_seconds[:count]) for one in timed],
        "tokens_per_cpu_second": tokens * count / cpu,
        "tokens_per_second": tokens * count / wall,
        "tokens_per_cpu_second_at": {
            at: tokens / median(lambda one, at=at: one.cpu_seconds[at - 1])  # type: ignore[misc]
            for at in SAID
            if at <= count
        },
        "before_cpu_seconds": median(lambda one: one.before_cpu_seconds),
        "before_seconds": median(lambda one: one.before_seconds),
        "peak_rss_bytes": median(lambda one: one.peak_rss_bytes),
        "curve": told.curve,
        "top_words": told.words,
    }


def _beside(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add what is said beside tomotopy: ratio of sweeps a second, time to its likelihood."""
    peer = next((row for row in rows if row["name"] == "tomotopy"), None)
    if peer is None:
        return rows
    judged = [at for at in peer["curve"] if at["sweep"] <= FIRST] or peer["curve"][:1]
    target = judged[-1]["log_likelihood"]
    return [
        {
            **row,
            "times_tomotopy": row["tokens_per_cpu_second"] / peer["tokens_per_cpu_second"],
            "target_log_likelihood": target,
            "cpu_seconds_to_target": seconds_to(row["curve"], target),
        }
        for row in rows
    ]


def seconds_to(curve: list[dict[str, Any]], target: float) -> float | None:
    """Return the CPU time until a likelihood, between judged sweeps by a line; None: not reached.

    What is reached before the first judged sweep is said to be reached at it.
    """
    before = None
    for at in curve:
        if at["log_likelihood"] >= target:
            if before is None:
                return float(at["cpu_seconds"])
            gained = at["log_likelihood"] - before["log_likelihood"]
            share = (target - before["log_likelihood"]) / gained
            spent = at["cpu_seconds"] - before["cpu_seconds"]
            return float(before["cpu_seconds"] + share * spent)
        before = at
    return None


def likelihood_at(curve: list[dict[str, Any]], seconds: float) -> float | None:
    """Return the likelihood after so much CPU time, as `seconds_to`; None: nothing is judged there.

    None too beyond the end.
    """
    times = [at["cpu_seconds"] for at in curve]
    if not times or not times[0] <= seconds <= times[-1]:
        return None
    return float(np.interp(seconds, times, [at["log_likelihood"] for at in curve]))


def show(corpus: Corpus, setting: Setting, rows: list[dict[str, Any]], truth: float | None) -> None:
    """Print the tables of one corpus and number of topics."""
    floor = "" if truth is None else f"; the truth has {truth:.4f}"
    room = 4 * len(corpus.words) * setting.topics + 10 * len(corpus.w) + 300_000_000
    print(
        f"\n{corpus.name}: {corpus.size}; {setting.topics} topics, alpha {setting.alpha:g}, beta "
        f"{setting.beta:g}{floor}; memory for ours {room / 1e6:.0f} MB; {machine()}\n"
    )
    print(
        "| | lanes | sweeps | M tokens/s of CPU | of wall | at 10 | at 30 | x tomotopy | CPU s "
        "| wall s | before: CPU s | peak MB | CPU s to tomotopy's |"
    )
    print("|---|" + "---:|" * 12)
    for row in rows:
        said = [row["tokens_per_cpu_second_at"].get(at) for at in SAID]
        ratio = row.get("times_tomotopy")
        print(
            f"| {row['name']} | {row['lanes']} | {row['first_sweeps']} "
            f"| {row['tokens_per_cpu_second'] / 1e6:.3g} | {row['tokens_per_second'] / 1e6:.3g} "
            f"| {' | '.join('' if speed is None else f'{speed / 1e6:.3g}' for speed in said)} "
            f"| {'' if ratio is None else f'{ratio:.2f}'} "
            f"| {row['first_cpu_seconds']:.4g} | {row['first_seconds']:.4g} "
            f"| {row['before_cpu_seconds']:.3g} | {row['peak_rss_bytes'] / 1e6:.0f} "
            f"| {_to_target(row)} |"
        )
    counts = sorted({at["sweep"] for row in rows for at in row["curve"]})
    print("\nLog-likelihood of a held-out token, after CPU seconds of sweeps:\n")
    print("| sweeps | " + " | ".join(map(str, counts)) + " |")
    print("|---|" + "---:|" * len(counts))
    for row in rows:
        judged = {at["sweep"]: at for at in row["curve"]}
        cells = [
            f"{judged[n]['log_likelihood']:.4f} ({judged[n]['cpu_seconds']:.1f} s)"
            if n in judged
            else ""
            for n in counts
        ]
        print(f"| {row['name']} ({row['lanes']}) | " + " | ".join(cells) + " |")
    reached = [[likelihood_at(row["curve"], at) for at in EQUAL] for row in rows]
    known = [i for i in range(len(EQUAL)) if any(line[i] is not None for line in reached)]
    print("\nAt equal CPU seconds of sweeps, between judged ones by a straight line:\n")
    print("| CPU s | " + " | ".join(str(EQUAL[i]) for i in known) + " |")
    print("|---|" + "---:|" * len(known))
    for row, line in zip(rows, reached, strict=True):
        cells = ["" if (found := line[i]) is None else f"{found:.4f}" for i in known]
        print(f"| {row['name']} ({row['lanes']}) | " + " | ".join(cells) + " |")
    print(f"\nTopics of {rows[0]['name']}:\n")
    for words in rows[0]["top_words"]:
        print(f"* {words}")


def _to_target(row: dict[str, Any]) -> str:
    if "target_log_likelihood" not in row:
        return ""
    seconds = row["cpu_seconds_to_target"]
    return "not" if seconds is None else f"{seconds:.1f}"


def chart(rows: list[dict[str, Any]], truth: float | None, clock: str) -> str:
    """Return the plot of likelihood against time, an SVG; ``clock`` is cpu or wall."""
    key, label = {"cpu": ("cpu_seconds", "CPU seconds"), "wall": ("seconds", "seconds")}[clock]
    series = {
        row["name"] if row["lanes"] == 1 else f"{row['name']}, {row['lanes']} lanes": [
            (at[key], at["log_likelihood"]) for at in row["curve"]
        ]
        for row in rows
    }
    title = f"{rows[0]['corpus']}, {rows[0]['topics']} topics"
    return line_chart.svg(
        title, f"{label} of sweeps", "log-likelihood of a held-out token", series, truth
    )


def peer(text: str) -> tuple[str, Path | None]:
    """Parse a peer of the command line: its name, or ``warplda=PATH``.

    Raises
    ------
    argparse.ArgumentTypeError
        It is none, or is not there.
    """
    name, _, place = text.partition("=")
    if name == "warplda" and place:
        try:
            return "WarpLDA", warplda.program(Path(place))
        except FileNotFoundError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    if text in topic_peers.PEERS:
        if not topic_peers.installed(text):
            raise argparse.ArgumentTypeError(topic_peers.missing(text))
        return text, None
    known = ", ".join(topic_peers.PEERS)
    raise argparse.ArgumentTypeError(f"{text!r} is no peer; expected {known} or warplda=PATH")


def _numbers(text: str) -> list[int]:
    """Parse ``100,1000`` of the command line; none where there is nothing."""
    try:
        numbers = [int(part) for part in text.split(",") if text]
    except ValueError:
        numbers = [0]
    if min(numbers, default=1) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; expected numbers from 1 on, as 100,1000")
    return numbers


def _corpora(args: argparse.Namespace) -> list[Corpus]:
    """Return the corpora of a command line, prepared where they are not there."""
    found = []
    if args.data is not None:
        found += [topic_corpora.corpus(name, args.data, BENCH) for name in args.corpora.split(",")]
    if args.generated:
        sizes = (args.generated, args.words, args.truth_topics)
        found.append(topic_truth.generated(*sizes, BENCH))
    return found


def _alpha(corpus: Corpus, topics: int) -> float:
    """Return the prior of a topic: a generated corpus's own sum, or that of ALPHA_SUMS."""
    known = ALPHA_SUMS.get(corpus.name) if corpus.alpha is None else float(corpus.alpha.sum())
    return (known or 5.0) / topics


def main() -> None:
    """Prepare the corpora where they are not there, compare, print, draw."""
    parser = argparse.ArgumentParser(
        description="Documents to topics, beside the peers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder of the files of IMDB and 20news")
    parser.add_argument("--corpora", default="imdb,news", help="which of them (imdb,news)")
    parser.add_argument("--generated", type=int, default=0, help="documents to draw; 0: none")
    parser.add_argument("--words", type=int, default=30_000, help="of drawn documents")
    parser.add_argument("--truth-topics", type=int, default=100, help="of drawn documents")
    parser.add_argument("--topics", type=_numbers, default=[100])
    parser.add_argument("--sweeps", type=topic_peers.sweeps, default=SWEEPS, help="judged after")
    parser.add_argument(
        "--seconds-max", type=float, default=300.0, help="CPU time after which no sweep is begun"
    )
    parser.add_argument("--lanes", type=_numbers, default=[1], help="of ours; '': without ours")
    parser.add_argument("--rounds", type=int, default=3, help="of speed; 0: that of quality")
    parser.add_argument(
        "--peer",
        action="append",
        default=[],
        type=peer,
        help=f"{', '.join(topic_peers.PEERS)}, warplda=PATH (its program, or its folder)",
    )
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="of the plots")
    parser.add_argument("--plots", type=Path, default=BENCH, help="folder of the plots")
    parser.add_argument("--json", type=Path, default=BENCH / "bench_lda.json")
    args = parser.parse_args()
    if not (args.lanes or args.peer):
        parser.error("nobody learns: name --lanes or a --peer")
    if args.data is None and not args.generated:
        parser.error("nothing to learn: name --data or --generated")
    BENCH.mkdir(exist_ok=True)
    args.plots.mkdir(parents=True, exist_ok=True)
    kept = []
    for corpus in _corpora(args):
        truth = None
        if corpus.phi is not None and corpus.alpha is not None:
            truth = _judge(corpus, corpus.phi, corpus.alpha)
        who = contenders(corpus, BENCH, args.lanes, dict(args.peer))
        for topics in args.topics:
            alpha = _alpha(corpus, topics)
            setting = Setting(topics, alpha, sweeps=args.sweeps, seconds_max=args.seconds_max)
            rows = compare(corpus, setting, who, args.rounds)
            show(corpus, setting, rows, truth)
            plot = args.plots / f"lda-{corpus.name}-{topics}.svg"
            plot.write_text(chart(rows, truth, args.clock))
            kept += [{**row, "truth_log_likelihood": truth} for row in rows]
            args.json.write_text(json.dumps({"machine": machine(), "rows": kept}, indent=2) + "\n")


if __name__ == "__main__":
    main()
