"""An `Inspection` as text, at most 80 columns wide: sections of plain lines, which the command line prints."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from llama3.inspect.run import Inspection, Token
from llama3.inspect.steps import STAGES, Step
from llama3.inspect.without import Part, name_of

WIDTH = 80
CERTAIN = 0.99  # tokens at least as probable are shown in one line
SHADES = " ░▒▓█"  # of an attention weight: below 0.05, 0.25, 0.5, 0.75, and above
BOUNDS = (0.05, 0.25, 0.5, 0.75)
Section = tuple[str, list[str]]  # a heading and its lines


def quoted(text: str, width: int = 14) -> str:
    """A token's text in quotes, on one line and no wider than `width`."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"'{shown}'" if len(shown) <= width - 2 else f"'{shown[: width - 3]}…'"


def share(probability: float) -> str:
    """A probability in four characters: " .90", "1.00"; "<.01" for less than a hundredth."""
    if probability < 0.005:
        return "  0 " if probability == 0 else "<.01"
    return f"{probability:.2f}" if probability >= 0.995 else f" {probability:.2f}".replace("0.", ".")


def summary(seen: Inspection) -> list[Section]:
    """What to print when nothing in particular is asked for."""
    return [tokens(seen), answer(seen), heads(seen), stream(seen), cost(seen)]


def tokens(seen: Inspection) -> Section:
    """The prompt's tokens with their ids, several a line."""
    cells = [f"{quoted(t.text, 22)} {t.id}" for t in seen.tokens[: seen.n_prompt]]
    lines = [""]
    for cell in cells:
        if len(lines[-1]) + len(cell) + 4 > WIDTH:
            lines.append("")
        lines[-1] += "  " + cell
    return f"The prompt: {len(cells)} tokens with their ids", lines


def answer(seen: Inspection) -> Section:
    """Each generated token: its probability, the entropy, and its most likely rivals."""
    lines = ["  pos  token           prob  nats  rivals of the model"]
    runs = [(certain, list(run)) for certain, run in groupby(seen.steps, lambda step: step.probability >= CERTAIN)]
    for step in [one for certain, run in runs for one in ([run] if certain and len(run) > 2 else run)]:
        if isinstance(step, list):
            text = quoted("".join(seen.vocabulary[one.token] for one in step), WIDTH - 43)
            lines.append(
                f"  {step[0].position:3}  {len(step):3} tokens, each at {share(CERTAIN).strip()} or more:  {text}"
            )
            continue
        others = [(t, p) for t, p in zip(step.rivals, step.stages["model"]) if t != step.token][:3]
        rivals = "  ".join(f"{quoted(seen.vocabulary[t], 11)}{share(p)}" for t, p in others if p >= 0.005)
        text = quoted(seen.vocabulary[step.token])
        lines.append(
            f"  {step.position:3}  {text:14}  {share(step.probability)}  {step.entropy:4.2f}  {rivals}".rstrip()
        )
    changed = [name for name in STAGES[1:] if any(moved(step, name) for step in seen.steps)]
    if changed:
        lines += ["", *sampler(seen, changed)]
    return f"The answer: {len(seen.answer.tokens)} tokens, seed {seen.answer.seed}", lines


def moved(step: Step, stage: str) -> bool:
    """Does this stage change the probability of a rival by a hundredth?"""
    before, after = step.stages[STAGES[STAGES.index(stage) - 1]], step.stages[stage]
    return max(abs(a - b) for a, b in zip(before, after)) >= 0.005


def sampler(seen: Inspection, changed: Sequence[str]) -> list[str]:
    """The least certain step, after each stage of the sampler that changes something."""
    step = max(seen.steps, key=lambda step: step.entropy)
    names = ["model", *changed]
    lines = [
        f"  The sampler at position {step.position}, the least certain (the draw's number is {step.u:.3f}):",
        "  " + " " * 14 + "".join(f"{name:>13}" for name in names),
    ]
    for i, token in enumerate(step.rivals[:6]):
        cells = "".join(f"{share(step.stages[name][i]):>13}" for name in names)
        lines.append(
            f"  {quoted(seen.vocabulary[token]):14}{cells}{'  chosen' * (token == step.token)}"[:WIDTH].rstrip()
        )
    return [*lines, "  " + f"{'tokens left':14}" + "".join(f"{step.left[name]:>13,}" for name in names)]


def heads(seen: Inspection, position: int | None = None) -> Section:
    """The heads that look hardest at one token other than the first, at the last position of the prompt."""
    at = seen.n_prompt - 1 if position is None else position
    weights = seen.attention[:, :, at, : at + 1]  # (n_layers, n_heads, at + 1)
    aside = weights[:, :, 1:] if at else weights
    order = np.argsort(-aside.max(axis=2).ravel())[:6]
    lines = ["  head    the three highest of its weights"]
    for layer, head in zip(*np.unravel_index(order, weights.shape[:2])):
        row = weights[layer, head]
        cells = [f"{quoted(seen.tokens[j].text):14} {share(row[j])}" for j in np.argsort(-row)[:3]]
        lines.append(f"  {f'{layer}.{head}':6}  {'  '.join(cells)}".rstrip())
    sink = float(weights[:, :, 0].mean())
    lines.append(f"  On the first token, the attention sink, a head puts {sink:.2f} on average.")
    return f"Attention at position {at}, {quoted(seen.tokens[at].text)}, which predicts the next token", lines


def stream(seen: Inspection) -> Section:
    """How large the residual stream is at each point: at the first token, and on average at the others."""
    lines = ["  point                          first token  others"]
    for name, row in zip(seen.lens.points, seen.norms):
        others = row[1:].mean() if len(row) > 1 else row[0]
        lines.append(f"  {name:30} {row[0]:11.2f}  {others:6.2f}")
    if len(lines) > 18:
        lines = [lines[0], *lines[1 :: -(-len(lines) // 16)]]
    return "The residual stream: root mean square", lines


def cost(seen: Inspection) -> Section:
    """Time and bytes by operation."""
    if not seen.operations:
        return "Time", ["  Times of operations are measured on the CPU only."]
    lines = ["  operation          ms        MB     floor, ms   time / floor"]
    for o in seen.operations:
        ms, floor = o.seconds * 1e3, o.floor * 1e3
        lines.append(f"  {o.name:14} {ms:8.3g} {o.bytes / 1e6:9.3g}  {floor:10.3g} {ms / floor:11.1f}")
    return "One more token: time of each operation and the least time to read its bytes", lines


def lens(seen: Inspection) -> Section:
    """The likeliest next token at points of the residual stream, for each position that predicts the answer."""
    points = seen.lens.points
    whole = range(len(points))[::2]  # the embedding, and the end of each layer
    spread = [whole[round(i)] for i in np.linspace(0, len(whole) - 1, min(len(whole), 4) + 1)]
    chosen = sorted({*spread[1:], max(len(points) - 2, 0)})  # and the last attention
    names = [points[s].replace("layers.", "").replace("attention_residual", "attention") for s in chosen]
    lines = ["  after         " + "".join(f"{name:13}" for name in names).rstrip()]
    for at in range(seen.n_prompt - 1, len(seen.tokens)):
        likely = [(seen.vocabulary[int(seen.lens.tokens[s, at, 0])], seen.lens.probabilities[s, at, 0]) for s in chosen]
        cells = "".join(f"{quoted(text, 8):8}{share(p)} " for text, p in likely)
        lines.append(f"  {quoted(seen.tokens[at].text):14}{cells}".rstrip())
    note = (
        [] if len(chosen) == len(points) else [f"  ({len(chosen)} of {len(points)} points; --json and --html have all)"]
    )
    return "The logit lens: the likeliest next token, were this point the last", lines + note


def attention(seen: Inspection, part: Part) -> Section:
    """One head: a map of its weights if it fits, and the three highest weights of each position."""
    weights = seen.attention[part[0], int(part[1])]  # (T, T)
    T = len(weights)
    lines = []
    fits = T + 26 <= WIDTH
    for i, (token, row) in enumerate(zip(seen.tokens, weights)):
        if fits:
            map_ = "".join(SHADES[int(np.searchsorted(BOUNDS, w, side="right"))] for w in row[: i + 1])
            lines.append(f"  {i:3} {quoted(token.text):14}  {map_:{i + 1}}|")
            continue
        lines.append(top_weights(seen.tokens, i, row))
    if fits:
        shades = ", ".join(f"{shade} from {bound}" for shade, bound in zip(SHADES[1:], BOUNDS))
        lines += [f"  A column is a position; {shades}.", ""]
        lines += [top_weights(seen.tokens, i, row) for i, row in enumerate(weights)]
    return f"Head {name_of(part)}: what each position looks at", lines


def top_weights(tokens: Sequence[Token], i: int, row: np.ndarray) -> str:
    top = [j for j in np.argsort(-row[: i + 1], kind="stable")[:3] if row[j] >= 0.005]
    cells = "".join(f"  {quoted(tokens[j].text, 12):12} {share(row[j])}" for j in top)
    return f"  {i:3} {quoted(tokens[i].text):14}{cells}".rstrip()


def without(seen: Inspection) -> Section:
    """The answers that follow when parts are switched off."""
    lines = [f"  {'all parts on':14} {quoted(seen.answer.text, WIDTH - 18)}"]
    for a in seen.ablations:
        lines.append(f"  {'without ' + ', '.join(map(name_of, a.parts)):14} {quoted(a.text, WIDTH - 18)}"[:WIDTH])
        lines.append(f"  {'':14} the same tokens at its beginning: {a.same}")
        lines.append(f"  {'':14} nats a token by which the first answer is less likely: {a.loss:.2f}")
    return "Parts switched off, and the answer that follows", lines
