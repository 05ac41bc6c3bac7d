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
    for candidate in candidates(words):
        call.out.write(f"{_replacing(shell, words[-1], candidate)}\n")


def _words(line: str) -> list[str]:
    """The words of a line as far as it goes; the last one is being typed, and may be empty."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is not closed yet
        words = line.split()
    return [*words, ""] if line[-1:].isspace() else words


def _replacing(shell: Shell, typed: str, candidate: str) -> str:
    """What a shell puts in the place of what was typed.

    bash takes a word to begin anew after a colon and an equals sign (COMP_WORDBREAKS), of which
    the addresses of parents are full.
    """
    if shell is not Shell.BASH or candidate == FILES:
        return candidate
    return candidate[max(typed.rfind(":"), typed.rfind("=")) + 1 :]


_SCRIPTS = {
    Shell.BASH: """\
_mdevns() {
    local found
    found=$("$1" completion bash "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    COMPREPLY=()
    if [[ $found == :files ]]; then
        compopt -o default
    elif [[ -n $found ]]; then
        mapfile -t COMPREPLY <<<"$found"
        [[ ${#COMPREPLY[@]} -gt 1 || ${COMPREPLY[0]} != *= ]] || compopt -o nospace
    fi
}
complete -F _mdevns mdevns
""",
    Shell.ZSH: """\
#compdef mdevns
_mdevns() {
    local -a found
    found=("${(@f)$(${words[1]} completion zsh "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    if [[ $found[1] == :files ]]; then
        _files
    elif [[ -n $found[1] ]]; then
        compadd -- $found
    fi
}
compdef _mdevns mdevns
""",
    Shell.FISH: """\
function __mdevns
    set -l found (mdevns completion fish (commandline -cp | string collect) 2>/dev/null)
    if test "$found" = :files
        __fish_complete_path (commandline -ct)
    else
        printf '%s\\n' $found
    end
end
complete -c mdevns -f -a '(__mdevns)'
""",
}
