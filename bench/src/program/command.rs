//! The program, run and measured.

use crate::ours::Outcome;
use crate::process::{MemoryWatch, cpu};
use multifd_tests::program;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde::Serialize;
use serde_json::Value;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Instant;

/// What one run of a case took.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Took {
    pub(crate) seconds: f64,
    /// Processor seconds, of QEMU and of ours.
    pub(crate) cpu: f64,
    /// The most anonymous memory of ours, bytes.
    pub(crate) memory: Option<u64>,
    /// From QEMU's event STOP to its event RESUME, seconds.
    pub(crate) pause: Option<f64>,
    /// The longest time between two lines of the guest's serial port, seconds of its clock.
    pub(crate) gap: Option<f64>,
}

/// Builds the program as users have it.
pub(crate) fn build() {
    program::use_release();
    program::path();
}

/// A run of the program that has begun.
pub(crate) struct Running {
    child: Child,
    watch: MemoryWatch,
    begun: Instant,
}

/// Starts the program.
pub(crate) fn start(args: &[&str]) -> Outcome<Running> {
    let begun = Instant::now();
    let child = Command::new(program::path())
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    Ok(Running {
        watch: MemoryWatch::start(child.id(), 0),
        child,
        begun,
    })
}

impl Running {
    /// Its standard error.
    pub(crate) fn said(&mut self) -> Outcome<ChildStderr> {
        Ok(self.child.stderr.take().ok_or("nothing to read it from")?)
    }

    /// Waits for the end, which must be a success; returns the JSON it printed, if it did.
    pub(crate) fn end(self) -> Outcome<(Took, Value)> {
        let Self {
            child,
            watch,
            begun,
        } = self;
        let pid = Pid::from_raw(child.id().cast_signed()).ok_or("no process")?;
        // It has ended, but what it used can still be seen.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(pid), options)?;
        let seconds = begun.elapsed().as_secs_f64();
        let used = cpu(child.id());
        let memory = watch.end();
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        let result = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let took = Took {
            seconds,
            cpu: used,
            memory: Some(memory),
            ..Took::default()
        };
        Ok((took, result))
    }
}

/// Runs the program to its end.
pub(crate) fn run(args: &[&str]) -> Outcome<(Took, Value)> {
    start(args)?.end()
}
