#!/bin/sh
# mdevctl's notifier: where another script may have answered mdevctl instead of our callout, the
# agent has not heard of the end, and so our callout is run to tell it. Else there is no news.
#
# Each action of mdevctl waits for it, so the shell does all of this by itself and starts nothing.
# It ends with 0 whatever it finds: nothing can be refused any more.

LC_ALL=C # names are in the order of their bytes, as mdevctl has them

here=${0%/*/*} # …/scripts.d
callout=$here/callouts/00-mdevns
usr=/usr/lib/mdevctl/scripts.d
etc=/etc/mdevctl.d/scripts.d

# A shell whose exec fails may end at once, so its interpreter is looked for before.
can_be_run() {
    [ -f "$callout" ] && [ -x "$callout" ] && read -r first _ <"$callout" && [ -x "${first#??}" ]
}

# Whether mdevctl asks ours before all others. Given is what it may ask, in its order; where it may
# keep none, ours has to be alone.
is_first() {
    order=$1
    found=1
    shift
    for script; do
        if [ "$script" = "$callout" ]; then
            found=0
            [ "$order" = none ] || break
        elif [ -e "$script" ] || [ -L "$script" ]; then # or it is a pattern that fits nothing
            return 1
        fi
    done
    return "$found"
}

# Whether the agent has heard of the end from the callout itself.
is_told() {
    case $here in
        *"$usr")
            is_first kept "$here"/callouts/.[!.]* "$here"/callouts/..?* "$here"/callouts/*
            ;;
        *"$etc") # of mdevctl 1.2, or of a later one whose /usr is read-only
            before=${here%"$etc"}$usr/callouts
            is_first none "$before"/.[!.]* "$before"/..?* "$before"/* \
                "$here"/callouts/.[!.]* "$here"/callouts/..?* "$here"/callouts/*
            ;;
        *) return 1 ;;
    esac
}

if ! can_be_run; then
    echo "the agent was not told of it: $callout is not there, or cannot be run" >&2
elif ! is_told; then
    exec "$callout" "$@"
fi

# Whoever writes to it is never refused. At a terminal nobody does.
if [ ! -t 0 ]; then
    while IFS= read -r _; do :; done 2>/dev/null
fi
exit 0
