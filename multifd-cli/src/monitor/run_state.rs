//! The states a guest can be in, and what a snapshot does to each.
//!
//! A migration, which is how a snapshot is taken, leaves a guest in the state `postmigrate`. From
//! there QEMU's `cont` lets it run, whatever it was before: of other states no trace is left.

use crate::failure::Failure;
use multifd_qemu::Tail;

/// What a snapshot does to a guest in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// It runs, stands still for the last of its memory, and goes on.
    GoesOn,
    /// It stands still, and stays so: in `postmigrate`, from which `cont` lets it run.
    StaysStopped,
    /// It stands still for a reason that QEMU forgets: only with `--stop`, by which the user says
    /// so. The reason why it may not be let run without a reset, if there is one.
    OnlyWithStop { no_resume: bool },
    /// It cannot be taken without harm.
    Refused(&'static str),
}

/// The rule for a state, in QEMU's words (`query-status`).
pub(crate) fn rule(state: &str) -> Rule {
    match state {
        "running" => Rule::GoesOn,
        "paused" | "prelaunch" => Rule::StaysStopped,
        "guest-panicked" | "io-error" | "watchdog" | "debug" => Rule::OnlyWithStop { no_resume: false },
        "shutdown" | "internal-error" => Rule::OnlyWithStop { no_resume: true },
        "suspended" => Rule::Refused(
            "it is suspended to RAM, and QEMU cannot let it go on after a migration (QEMU 10.0 aborts at cont). Wake it first \
             (the monitor's command system_wakeup)",
        ),
        "postmigrate" => Rule::Refused(
            "an earlier migration has stopped it, and QEMU does not migrate it again: let it run on first (the monitor's command \
             cont)",
        ),
        "inmigrate" => Rule::Refused("QEMU waits for a migration, and has no guest yet"),
        "finish-migrate" => Rule::Refused("QEMU is busy with a migration"),
        "save-vm" | "restore-vm" => Rule::Refused("QEMU saves or loads a snapshot of its own"),
        "colo" => Rule::Refused("it is one half of a COLO pair, which a migration would break"),
        _ => Rule::Refused("this program does not know the state, and so not how to give it back"),
    }
}

/// The state that a guest was in when it was saved, as far as its device sections say.
pub(crate) fn saved(tail: &Tail) -> Option<String> {
    let states = tail.states("globalstate")?;
    let name = states.first()?.field("runstate")?;
    let name = name.split(|&byte| byte == 0).next()?;
    (!name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

/// Checks that a snapshot can be taken of a guest in this state, and left as it was asked for;
/// nothing has been changed.
pub(crate) fn check(state: &str, resume: bool, stop: bool) -> Result<Rule, Failure> {
    let refused = |why: &str| {
        Err(Failure::Other(format!(
            "no snapshot can be taken of a guest that is {state:?}: {why}. Nothing was changed"
        )))
    };
    let rule = rule(state);
    match rule {
        Rule::Refused(why) => refused(why),
        Rule::OnlyWithStop { no_resume: true } if resume => {
            refused("it needs a reset before it can run, and QEMU would not know that any more")
        }
        Rule::OnlyWithStop { .. } if !resume && !stop => refused(
            "QEMU forgets that state in a migration. --stop takes the snapshot, which keeps the state, and leaves this guest \
             stopped",
        ),
        _ => Ok(rule),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every state of QEMU 10.0 (`RunState`).
    const ALL: [&str; 16] = [
        "debug",
        "inmigrate",
        "internal-error",
        "io-error",
        "paused",
        "postmigrate",
        "prelaunch",
        "finish-migrate",
        "restore-vm",
        "running",
        "save-vm",
        "shutdown",
        "suspended",
        "watchdog",
        "guest-panicked",
        "colo",
    ];

    #[test]
    fn every_state_has_a_rule_and_unknown_ones_are_refused() {
        let allowed = |resume, stop| {
            let all = ALL.into_iter();
            all.filter(|state| check(state, resume, stop).is_ok())
                .collect::<Vec<_>>()
        };
        assert_eq!(allowed(false, false), ["paused", "prelaunch", "running"]);
        assert_eq!(
            allowed(true, false),
            [
                "debug",
                "io-error",
                "paused",
                "prelaunch",
                "running",
                "watchdog",
                "guest-panicked"
            ]
        );
        assert_eq!(
            allowed(false, true),
            [
                "debug",
                "internal-error",
                "io-error",
                "paused",
                "prelaunch",
                "running",
                "shutdown",
                "watchdog",
                "guest-panicked"
            ]
        );
        assert!(check("something new", true, false).is_err());
        let error = check("suspended", true, false).unwrap_err().to_string();
        assert!(
            error.contains("system_wakeup") && error.contains("Nothing was changed"),
            "{error}"
        );
    }

    #[test]
    fn the_documents_name_every_state() {
        let table = include_str!("../../../docs/run-states.md");
        for state in ALL {
            assert!(table.contains(&format!("| `{state}` |")), "{state}");
        }
    }
}
