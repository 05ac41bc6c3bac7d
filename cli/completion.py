"""`completion`: what makes a shell complete commands, options and names."""

# No `from __future__ import annotations`: Typer reads the annotations.

import shlex
from enum import StrEnum
from typing import Annotated

import typer

from cli.completing import FILES, candidates
from cli.context import Call, command

__all__ = ["Shell", "completion"]


class Shell(StrEnum):
    """The shells whose scripts there are."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@command
def completion(
    call: Call,
    shell: Annotated[Shell, typer.Argument(help="Which shell.", show_default=False)],
    line: Annotated[
        str | None,
        typer.Argument(hidden=True, help="The command line up to the cursor, to be completed."),
    ] = None,
    replaced: Annotated[
        str | None,
        typer.Argument(hidden=True, help="What of its last word the shell replaces; else all."),
    ] = None,
) -> None:
    """Print the script that makes a shell complete commands, options and names.

    In bash: source <(mdevns completion bash). In zsh the same; in fish:
    mdevns completion fish | source. Names, hosts, parents and types come from the store, within
    a second; when it cannot be reached, none are offered.
    """
    if line is None:
        call.out.write(_SCRIPTS[shell])
        return
    words = _words(line)[1:] or [""]
    kept = _kept(words[-1], replaced)
    for candidate in candidates(words):
        call.out.write(f"{candidate if candidate == FILES else candidate[kept:]}\n")


def _words(line: str) -> list[str]:
    """The words of a line as far as it goes; the last one is being typed, and may be empty."""
    for closing in ("", "'", '"'):  # a quote may still be open
        try:
            words = shlex.split(line + closing)
        except ValueError:
            continue
        return [*words, ""] if not closing and line[-1:].isspace() else words
    return line.split()


def _kept(word: str, replaced: str | None) -> int:
    """How many characters of the last word the shell leaves as they are.

    In bash a word begins anew after each of COMP_WORDBREAKS, as the user has set it: mostly
    after a colon, of which the addresses of parents are full, and an equals sign. In quotes it
    does not.
    """
    return len(word) - len(replaced) if replaced is not None and word.endswith(replaced) else 0


_SCRIPTS = {
    Shell.BASH: """\
_mdevns() {
    local found
    found=$("${1/#\\~/$HOME}" completion bash -- "${COMP_LINE:0:COMP_POINT}" "$2" 2>/dev/null)
    COMPREPLY=()
    if [[ $found == :files ]]; then
        compopt -o default
    elif [[ -n $found ]]; then
        mapfile -t COMPREPLY <<<"$found"
    fi
}
complete -F _mdevns mdevns
""",
    # Either sourced, or found in $fpath and called the first time by being read.
    Shell.ZSH: """\
#compdef mdevns
_mdevns() {
    local -a found
    found=("${(@f)$(${~words[1]} completion zsh "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    if [[ $found[1] == :files ]]; then
        compset -P '-*='
        _files
    elif [[ -n $found[1] ]]; then
        compadd -- $found
    fi
}
if [[ $funcstack[1] == _mdevns ]]; then _mdevns "$@"; else compdef _mdevns mdevns; fi
""",
    Shell.FISH: """\
function __mdevns
    set -l found (mdevns completion fish (commandline -cp | string collect) 2>/dev/null)
    if test "$found" = :files
        set -l option (string match -r -- '^-.*?=' (commandline -ct))
        set -l typed (string replace -r -- '^-.*?=' '' (commandline -ct))
        for file in (__fish_complete_path $typed)
            printf '%s%s\\n' "$option" $file
        end
    else if set -q found[1]
        printf '%s\\n' $found
    end
end
complete -c mdevns -f -a '(__mdevns)'
""",
}
