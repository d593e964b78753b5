//! How a command that fails ends the program.

use crate::{report, signals};
use std::sync::OnceLock;

/// Whether the command prints JSON, and the exit status of a failure.
static ENDING: OnceLock<(bool, u8)> = OnceLock::new();

/// Notes how the command that runs is to end if it fails.
pub(crate) fn set(json: bool, trouble: u8) {
    let _ = ENDING.set((json, trouble));
}

/// Says why the command has failed; returns the exit status.
pub(crate) fn tell(why: &str) -> u8 {
    let (json, trouble) = ENDING.get().copied().unwrap_or((false, 1));
    report::note(&format!("multifd: {why}"));
    if json {
        // The exit status says the same.
        let _ = report::print(true, &serde_json::json!({ "ok": false, "error": why }), "");
    }
    signals::exit_status().unwrap_or(trouble)
}
