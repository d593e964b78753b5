//! The states a guest can be in, and what a snapshot does to each.
//!
//! A migration, which is how a snapshot is taken, leaves a guest in the state `postmigrate`. From
//! there QEMU's `cont` lets it run, whatever it was before: of other states no trace is left.

use crate::qmp::QmpError;

/// The effect of a snapshot on a guest in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunStateRule {
    /// It runs, stands still for the last of its memory, and goes on.
    GoesOn,
    /// It stands still, and stays so: in `postmigrate`, from which `cont` lets it run.
    StaysStopped,
    /// It stands still for a reason that QEMU forgets: only if the caller asks to leave it stopped.
    OnlyWithStop {
        /// It needs a reset before it can run.
        no_resume: bool,
    },
    /// A snapshot would harm it, with the reason.
    Refused(&'static str),
}

/// The rule for a state, in QEMU's words (`query-status`).
pub fn run_state_rule(state: &str) -> RunStateRule {
    match state {
        "running" => RunStateRule::GoesOn,
        "paused" | "prelaunch" => RunStateRule::StaysStopped,
        "guest-panicked" | "io-error" | "watchdog" | "debug" => {
            RunStateRule::OnlyWithStop { no_resume: false }
        }
        "shutdown" | "internal-error" => RunStateRule::OnlyWithStop { no_resume: true },
        "suspended" => RunStateRule::Refused(
            "it is suspended to RAM, and QEMU cannot let it go on after a migration (QEMU 10.0 aborts at cont). Wake it first \
             (the monitor's command system_wakeup)",
        ),
        "postmigrate" => RunStateRule::Refused(
            "an earlier migration has stopped it, and QEMU does not migrate it again: let it run on first (the monitor's command \
             cont)",
        ),
        "inmigrate" => RunStateRule::Refused("QEMU waits for a migration, and has no guest yet"),
        "finish-migrate" => RunStateRule::Refused("QEMU is busy with a migration"),
        "save-vm" | "restore-vm" => {
            RunStateRule::Refused("QEMU saves or loads a snapshot of its own")
        }
        "colo" => {
            RunStateRule::Refused("it is one half of a COLO pair, which a migration would break")
        }
        _ => RunStateRule::Refused(
            "this program does not know the state, and so not how to give it back",
        ),
    }
}

/// Checks that a snapshot can be taken of a guest in this state, and left as it was asked for;
/// nothing has been changed.
pub(super) fn check(state: &str, resume: bool, stop: bool) -> Result<RunStateRule, QmpError> {
    let refused = |why: &str| {
        Err(QmpError::Refused(format!(
            "no snapshot can be taken of a guest that is {state:?}: {why}"
        )))
    };
    let rule = run_state_rule(state);
    match rule {
        RunStateRule::Refused(why) => refused(why),
        RunStateRule::OnlyWithStop { no_resume: true } if resume => {
            refused("it needs a reset before it can run, and QEMU would not know that any more")
        }
        RunStateRule::OnlyWithStop { .. } if !resume && !stop => refused(
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
}
