"""Values that would run a program if anything on the way to SLURM took them for more than data.

Every value names the same canary: a file that appears when one of them is executed.
"""

from __future__ import annotations

CANARY = "canary"
"""Name of the file in the working folder that a payload makes."""

_PAYLOAD = f"touch {CANARY}"

_SHELL = (
    f"$({_PAYLOAD})",
    f"`{_PAYLOAD}`",
    f"; {_PAYLOAD} ;",
    f";{_PAYLOAD};#",
    f"&& {_PAYLOAD} &&",
    f"|| {_PAYLOAD} ||",
    f"| {_PAYLOAD} |",
    f"& {_PAYLOAD} &",
    f"' ; {_PAYLOAD} ; '",
    f'" ; {_PAYLOAD} ; "',
    f"\"'$({_PAYLOAD})'\"",
    f"'\"`{_PAYLOAD}`\"'",
    f"\\$({_PAYLOAD})",
    f"\\\\$({_PAYLOAD})",
    f"\\`{_PAYLOAD}\\`",
    f"<({_PAYLOAD})",
    f">({_PAYLOAD})",
    f"${{x:-$({_PAYLOAD})}}",
    f"${{x:=`{_PAYLOAD}`}}",
    f"$[$({_PAYLOAD})]",
    f"$((a[$({_PAYLOAD})]))",
    f"a[$({_PAYLOAD})]",
    f"a[`{_PAYLOAD}`]+1",
    f"x=$({_PAYLOAD})",
    f"() {{ :;}}; {_PAYLOAD}",
    f"{{{_PAYLOAD},}}",
    f"!{_PAYLOAD}",
    f"!!$({_PAYLOAD})",
    f"%(!{_PAYLOAD})",
    f"%j$({_PAYLOAD})",
    f"%x-%A_%a-%N `{_PAYLOAD}`",
    f"\\%j `{_PAYLOAD}`",
    "%", "%%", "%j", "%%j", "%1000000j", "\\", "\\\\", "\\j", "a\\b",
    f"*; {_PAYLOAD}",
    f"~; {_PAYLOAD}",
    f"~$({_PAYLOAD})/a",
    f"?{_PAYLOAD}",
    "~", "~nobody-of-this-name", "~+", "$HOME", "${PATH}", "$SLURM_JOB_ID", "$0", "$@", "$*", "$$",
    f"-c {_PAYLOAD}",
    f"{_PAYLOAD} #",
    f"#{_PAYLOAD}",
    f"#SBATCH --wrap={_PAYLOAD}",
    f"#SBATCH --prolog=`{_PAYLOAD}`",
    f"#!/bin/bash {_PAYLOAD}",
    f"eval {_PAYLOAD}",
    f"exec {_PAYLOAD}",
    f"source <({_PAYLOAD})",
    f"env -S {_PAYLOAD}",
    f"(({_PAYLOAD}))",
    f"({_PAYLOAD})",
    f"{{ {_PAYLOAD}; }}",
    f"if {_PAYLOAD}; then :; fi",
    f"trap '{_PAYLOAD}' EXIT",
    f"BASH_ENV={_PAYLOAD}",
    f"a' --wrap='{_PAYLOAD}",
    f'a" --wrap="{_PAYLOAD}',
    f"a --wrap={_PAYLOAD}",
    f"a,ALL,BASH_FUNC_srun%%=() {{ {_PAYLOAD}; }}",
    f"${{IFS}}$({_PAYLOAD.replace(' ', '${IFS}')})",
    f"$({_PAYLOAD.replace(' ', '$IFS')})",
    f"$({{touch,{CANARY}}})",
    f"$(<{CANARY})",
    f"`>{CANARY}`",
    f">{CANARY}",
    f"2>{CANARY}",
    f"$'\\x74ouch' {CANARY}",
    f"$(echo touch {CANARY} | sh)",
    f"$(exec 3>{CANARY})",
)  # fmt: skip

_DASHES = (
    "-", "--", "---", "-h", "--help", "--version", "--debug", "--json", "--dry-run", "-c", "-e",
    f"--wrap={_PAYLOAD}",
    f"--prolog={_PAYLOAD}",
    f"--task-prolog=$({_PAYLOAD})",
    f"--epilog=`{_PAYLOAD}`",
    f"--export=ALL,BASH_ENV=$({_PAYLOAD})",
    f"--mail-type=ALL;{_PAYLOAD}",
    f"--set=launch.account=$({_PAYLOAD})",
    f"--config=$({_PAYLOAD})",
    f"--output=|{_PAYLOAD}",
    f"--chdir=$({_PAYLOAD})",
    f"--comment=$({_PAYLOAD})",
    f"--job-name=`{_PAYLOAD}`",
    f"--bcast=$({_PAYLOAD})",
    f"--uid=0;{_PAYLOAD}",
    f"-J$({_PAYLOAD})",
    f"-D`{_PAYLOAD}`",
    f"--; {_PAYLOAD}",
    f"-- $({_PAYLOAD})",
)  # fmt: skip

_BREAKS = tuple(
    text
    for mark in ("\n", "\r", "\r\n", "\x0b", "\x0c", "\x85", "\u2028", "\u2029")
    for text in (f"a{mark}#SBATCH --wrap={_PAYLOAD}", f"a{mark}{_PAYLOAD}{mark}", f"{mark}$({_PAYLOAD})")
)

_CONTROL = tuple(f"a{chr(code)}$({_PAYLOAD})" for code in (0, 1, 4, 7, 8, 9, 26, 27, 127, 128, 155, 159))

_UNICODE = (
    f"größe $({_PAYLOAD})",
    f"眼底 `{_PAYLOAD}`",
    f"\u202e$({_PAYLOAD})",
    f"\u200b; {_PAYLOAD}",
    f"\ufeff$({_PAYLOAD})",
    f"\ufffe`{_PAYLOAD}`",
    f"\U0001f441$({_PAYLOAD})",
    f"\U0010ffff; {_PAYLOAD}",
    f"e\u0301$({_PAYLOAD})",
    f"\uff04({_PAYLOAD})",
    f"\uff1b{_PAYLOAD}",
    f"\u037e {_PAYLOAD}",
    f"\u2018; {_PAYLOAD};\u2019",
    f"\u00a0{_PAYLOAD}\u00a0",
    f"\ud800$({_PAYLOAD})",
    f"\udc80`{_PAYLOAD}`",
    "٢٤:00:00",
    "\u0662\u0664",
    "\u2013\u2013wrap",
    "\u2212h",
)

_YAML = (
    f"a: $({_PAYLOAD})",
    f"!!python/object/apply:os.system ['{_PAYLOAD}']",
    f"{{a: $({_PAYLOAD})}}",
    f"[$({_PAYLOAD})]",
    f"- `{_PAYLOAD}`",
    "&a *a",
    f"a # $({_PAYLOAD})",
    f"? $({_PAYLOAD})",
    "null", "true", "0x10", "1e3", ".", "..", "...",
    f"'{_PAYLOAD}",
    f'"{_PAYLOAD}',
    f"| {_PAYLOAD}",
    f"@$({_PAYLOAD})",
    f"%YAML 1.1 `{_PAYLOAD}`",
)  # fmt: skip

_LONG = (
    f"$({_PAYLOAD})" + "x" * 65_536,
    "x" * 65_536 + f"; {_PAYLOAD}",
    f"`{_PAYLOAD}`" * 4_000,
    "x" * 200 + f" $({_PAYLOAD})",
    "/".join([f"a$({_PAYLOAD})"] * 8),
    f"../../$({_PAYLOAD})",
    f"./`{_PAYLOAD}`/..",
    " ", "  ", " a ", "\u3000", "a//b", "a/./b", "",
)  # fmt: skip

VALUES = tuple(dict.fromkeys((*_SHELL, *_DASHES, *_BREAKS, *_CONTROL, *_UNICODE, *_YAML, *_LONG)))
"""Every value once."""
TYPED = tuple(value for value in VALUES if "\0" not in value and "\ud800" not in value)
"""Those that a command line can hold at all."""
