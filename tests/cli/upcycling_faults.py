"""What cannot be upcycled so, for every recipe. The weights named here hold NaN, which is told as soon as they are read: so all
of these are told before."""

from __future__ import annotations

from cli.tiny_models import TINY

#: The recipes that copy the FFN.
RECIPES = ("upcycle", "drop-upcycle", "granular-upcycle", "residual-upcycle", "lora-experts", "thor")

CORES = ("residual-upcycle", "lora-experts")


def _of_file(recipe: str, options: str) -> str:
    return f"convert nan.pt -o out {TINY} --recipe {recipe} {options}"


def _of_folder(recipe: str, options: str) -> str:
    return f"convert nan-llama -o out --recipe {recipe} {options}"


def _by(text: str, option: str = "upcycle-experts.by") -> str:
    return f"--set '{option}={{{text}}}'"


#: caption, options, what the message says: with each of the recipes
_EVERYWHERE: list[tuple[str, str, tuple[str, ...]]] = [
    ("more chosen than there are", "--experts 2 --top-k 9", ("top_k is 9", "experts: choose 1 to")),
    ("copies without end", "--experts 1000000", ("upcycle-experts", "choose 65536 or fewer")),
    ("no copies", "--set upcycle-experts.copies=0", ("upcycle-experts.copies is 0", "choose 1 or more")),
    ("shards of nothing", "--set upcycle-experts.shards=0", ("upcycle-experts.shards is 0", "choose 1 or more")),
    ("a misspelt strategy", "--set upcycle-experts.by=copys", ("'copys'", "did you mean 'copies'?")),
    ("a strategy without a kind", _by("rank=4"), ("upcycle-experts.by", "kind = ...", "copies", "lora")),
    ("a misspelt option of a strategy", _by('kind="lora", rnk=4'), ("'rnk'", "did you mean 'rank'?")),
    ("a share of nothing", _by('kind="drop", share=0'), ("drop.share is 0.0", "above 0 and up to 1")),
    ("a share above 1", _by('kind="drop", share=1.5'), ("drop.share is 1.5", "above 0 and up to 1")),
    ("negative noise", _by('kind="noise", std=-0.1'), ("noise.std is -0.1", "above 0")),
    ("a rank of nothing", _by('kind="lora", rank=0'), ("lora.rank is 0", "choose 1 or more")),
    ("a rank of halves", _by('kind="lora", rank=2.5'), ("upcycle-experts.by.rank is 2.5", "int")),
    ("a negative alpha", _by('kind="lora", alpha=-1'), ("lora.alpha is -1.0", "above 0")),
    ("one checkpoint", _by('kind="checkpoints", paths=["nan.pt"]'), ("checkpoints.paths names 1", "two or more")),
]

#: caption, command line, what the message says
_USE: list[tuple[str, str, tuple[str, ...]]] = [
    *((f"{recipe}: {caption}", _of_file(recipe, options), words)
      for recipe in RECIPES for caption, options, words in _EVERYWHERE),
    *((f"{recipe}: shards that do not divide", _of_file(recipe, "--set upcycle-experts.shards=5"),
       ("shards is 5", "32 neurons of 0", "choose 4 or 8")) for recipe in RECIPES if recipe not in CORES),
    *((f"{recipe}: shards of a core", _of_file(recipe, "--set upcycle-experts.shards=4"),
       ("shards is 4", "frozen core", "leave shards at 1")) for recipe in CORES),
    ("granular-upcycle: shards of a core", _of_file("granular-upcycle", "--set upcycle-experts.by=lora"),
     ("shards is 4", "frozen core", "leave shards at 1")),
    ("thor: shards that are drawn", _of_file("thor", "--set upcycle-experts.shards=4"),
     ("insert-stochastic-experts", "4 shards", "leave upcycle-experts.shards at 1")),
    ("shards of a folder that do not divide", _of_folder("granular-upcycle", "--set upcycle-experts.shards=7"),
     ("shards is 7", "48 neurons of model.layers.0.mlp", "choose 6 or 8")),
    ("a rank above the matrices", _of_file("lora-experts", _by('kind="lora", rank=9')),
     ("lora.rank is 9", "(8 -> 32 -> 8)", "choose 1 to 8")),
    *((f"a rank above the matrices of {model}", f"convert {model} -o out --recipe lora-experts " + _by('kind="lora", rank=40'),
       ("lora.rank is 40", "choose 1 to")) for model in ("nan-module.pt", "nan.pt2", "nan-adapter")),
    *((f"shards that do not divide, of {model}",
       f"convert {model} -o out --recipe granular-upcycle --set upcycle-experts.shards=7", ("shards is 7", "neurons of"))
      for model in ("nan-module.pt", "nan.pt2", "nan-adapter")),
    ("a rank above the matrices, drawn", _of_file("thor", _by('kind="lora", rank=9')), ("lora.rank is 9", "choose 1 to 8")),
    ("a rank above the matrices of a folder", _of_folder("lora-experts", _by('kind="lora", rank=17')),
     ("lora.rank is 17", "model.layers.0.mlp (16 -> 48 -> 16)", "choose 1 to 16")),
    ("a budget below the core", _of_file("lora-experts", "--active 0.5"), ("insert-router.active is 0.5", "the frozen core")),
    ("layers that match nothing", _of_file("upcycle", "--layers '*.mlp'"), ("*.mlp",)),
    ("a misspelt gate", _of_file("upcycle", "--set insert-router.gate=softmx"), ("'softmx'", "softmax")),
    ("a router of negative weights", _of_file("upcycle", _by('kind="random", std=-1', "insert-router.by")),
     ("random.std is -1.0", "above 0")),
    ("a misspelt scope", _of_file("thor", "--set insert-stochastic-experts.scope=batch"),
     ("scope is 'batch'", "forward or sequence or token")),
    ("a misspelt inference", _of_file("thor", "--set insert-stochastic-experts.inference=merge"),
     ("inference is 'merge'", "random or fixed or merged or ensemble")),
    ("a draw of nothing", _of_file("thor", "--set insert-stochastic-experts.top_k=0"),
     ("insert-stochastic-experts.top_k is 0", "choose 1 or more")),
    ("copies that are not as many as the checkpoints",
     _of_file("upcycle", "--experts 3 " + _by('kind="checkpoints", paths=["nan.pt", "nan.pt"]')),
     ("copies is 3", "names 2", "give as many")),
]  # fmt: skip

_INPUT: list[tuple[str, str, tuple[str, ...]]] = [
    *((f"{recipe}: what is upcycled already", f"convert upcycled -o out --recipe {recipe}",
       ("upcycled", "is a converted model already")) for recipe in RECIPES),
    ("checkpoints of another shape", _of_file("upcycle", _by('kind="checkpoints", paths=["nan.pt", "wide.pt"]')),
     ("wide.pt", "no checkpoint of the same model", "[8, 64] here", "[8, 32] there")),
    ("checkpoints of another shape, of a folder",
     _of_folder("upcycle", _by('kind="checkpoints", paths=["nan-llama", "wide-llama"]')),
     ("wide-llama", "no checkpoint of the same model", "here and", "there")),
    ("a checkpoint that is not there", _of_file("upcycle", _by('kind="checkpoints", paths=["nan.pt", "absent.pt"]')),
     ("absent.pt", "no such file")),
]  # fmt: skip

#: caption, command line, exit code, what the message says
UPCYCLING = [
    *((caption, line, 2, words) for caption, line, words in _USE),
    *((caption, line, 1, words) for caption, line, words in _INPUT),
]
