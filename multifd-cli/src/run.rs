//! `multifd run`: QEMUs that start from a snapshot.

use crate::failure::Failure;
use crate::monitor_args::{Run, Verification};
use crate::private_socket::MeetingPlace;
use crate::restore::{refuse_if_damaged, start, verify_behind};
use crate::{monitor, report, signals};
use multifd_core::{CancelHandle, Unblock};
use multifd_qemu::file::SnapshotFile;
use multifd_qemu::instant::QemuOptions;
use multifd_qemu::qmp::{Qmp, QmpError, RestoreOptions};
use multifd_transport_socket::{Address, SocketOptions};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often a wait for a QEMU that starts looks whether it lives.
const TICK: Duration = Duration::from_millis(10);

pub(crate) fn run(args: &Run) -> Result<ExitCode, Failure> {
    let cancel = signals::cancel_on_signal()?;
    let file = args.image.lasting()?;
    let options = QemuOptions::of(&file)?;
    let Some((program, given)) = args.command.split_first() else {
        return Err(Failure::Other("there is no QEMU to run".into()));
    };
    let arguments = options.apply(given)?;
    let stopped = given.iter().any(|word| word == "-S" || word == "--S");
    if args.verify == Some(Verification::First) {
        refuse_if_damaged(&file)?;
    }
    let begun = Instant::now();
    let mut machines = Vec::new();
    for number in 1..=args.count {
        machines.push(Machine::spawn(program, &arguments, (number, args.count))?);
    }
    let mut monitors = Vec::new();
    for machine in &mut machines {
        monitors.push(machine.go_on(args, &file, stopped, &cancel)?);
    }
    if !args.quiet {
        let who = match args.count {
            1 => "the guest goes".into(),
            count => format!("{count} guests go"),
        };
        report::note(&format!(
            "{who} on from {} after {:.0} ms",
            args.image.file.display(),
            begun.elapsed().as_secs_f64() * 1000.0
        ));
    }
    if args.verify == Some(Verification::Background) {
        let mut outcome = Ok(());
        for monitor in &mut monitors {
            // It is read once; the others are only told.
            outcome = match outcome {
                Ok(()) => verify_behind(monitor, &file),
                Err(error) => {
                    monitor.execute("stop", &serde_json::json!({}))?;
                    Err(error)
                }
            };
            if outcome.is_ok() {
                break;
            }
        }
        if let Err(error) = outcome {
            // They stand still, for whoever wants to look at them; their end is awaited as ever.
            report::note(&format!("multifd: {error}"));
        }
    }
    drop(monitors);
    wait_for_all(machines, &cancel)
}

/// A QEMU that was started. Until it goes on from the snapshot, it ends when this is dropped.
struct Machine {
    child: Child,
    listener: UnixListener,
    place: MeetingPlace,
    handed_over: bool,
}

impl Machine {
    fn spawn(
        program: &OsStr,
        arguments: &[OsString],
        (number, count): (u32, u32),
    ) -> Result<Self, Failure> {
        let place = MeetingPlace::new(None)?;
        let Address::Unix(path) = &place.address else {
            return Err(Failure::Other("there is no private folder".into()));
        };
        let path = path.with_file_name("qmp");
        let open = |cause| Failure::Open {
            path: path.clone(),
            cause,
        };
        let listener = UnixListener::bind(&path).map_err(open)?;
        listener.set_nonblocking(true).map_err(open)?;
        // QEMU connects to us: whether it has come so far is seen at once.
        let chardev = format!("socket,id=multifd,path={}", path.display());
        let mut command = Command::new(program);
        command
            .args(arguments.iter().map(|word| numbered(word, number)))
            .args(["-chardev", &chardev, "-mon", "chardev=multifd,mode=control"]);
        if count > 1 {
            command.stdin(Stdio::null());
        }
        let child = command.spawn().map_err(|cause| Failure::Open {
            path: program.into(),
            cause,
        })?;
        Ok(Self {
            child,
            listener,
            place,
            handed_over: false,
        })
    }

    /// Waits until QEMU has started, and has it go on from the snapshot.
    fn go_on(
        &mut self,
        args: &Run,
        file: &SnapshotFile,
        stopped: bool,
        cancel: &CancelHandle,
    ) -> Result<Qmp, Failure> {
        let timeout = Duration::from_secs(args.timeout);
        let stream = self.connection(timeout, cancel)?;
        let mut qmp = match Qmp::over(Box::new(stream), "the QEMU that was started", timeout) {
            Err(QmpError::Gone { .. }) => return Err(ended(self.child.wait().ok())),
            other => other?,
        };
        let options = RestoreOptions::default()
            .resume(!stopped)
            .stop(stopped)
            .timeout(timeout)
            .hooks(monitor::hooks());
        let socket = SocketOptions::default().connect(timeout).stall(timeout);
        start(&mut qmp, file, &self.place, socket, cancel, &options)?;
        self.handed_over = true;
        Ok(qmp)
    }

    fn connection(
        &mut self,
        timeout: Duration,
        cancel: &CancelHandle,
    ) -> Result<UnixStream, Failure> {
        let system = |cause| Failure::System {
            doing: "waiting for QEMU to start",
            cause,
        };
        let end = Instant::now() + timeout;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).map_err(system)?;
                    stream.set_read_timeout(Some(TICK * 10)).map_err(system)?;
                    stream.set_write_timeout(Some(timeout)).map_err(system)?;
                    return Ok(stream);
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(cause) => return Err(system(cause)),
            }
            if let Some(cancelled) = cancel.error() {
                return Err(cancelled.into());
            }
            if let Some(status) = self.child.try_wait().map_err(system)?
                && !status.success()
            {
                return Err(ended(Some(status)));
            }
            if Instant::now() >= end {
                return Err(Failure::Other(format!(
                    "QEMU did not start within {timeout:?} (--timeout)"
                )));
            }
            wait_readable(&self.listener);
        }
    }
}

fn ended(status: Option<ExitStatus>) -> Failure {
    let status = status.map_or_else(String::new, |status| format!(" ({status})"));
    Failure::Other(format!(
        "QEMU ended before it came to load the snapshot{status}; what it said is above"
    ))
}

impl Drop for Machine {
    fn drop(&mut self) {
        if !self.handed_over {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits a moment for a connection.
fn wait_readable(listener: &UnixListener) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let time = Timespec::try_from(TICK).ok();
    // Whatever comes of it, the listener is asked next.
    let _ = poll(&mut [PollFd::new(listener, PollFlags::IN)], time.as_ref());
}

/// An argument for the QEMU of a number.
fn numbered(word: &OsStr, number: u32) -> OsString {
    let (bytes, number) = (word.as_bytes(), number.to_string());
    let mut out = Vec::with_capacity(bytes.len());
    let mut left = bytes;
    while let Some((&first, rest)) = left.split_first() {
        if let Some(after) = left.strip_prefix(b"{n}") {
            out.extend_from_slice(number.as_bytes());
            left = after;
        } else {
            out.push(first);
            left = rest;
        }
    }
    OsString::from_vec(out)
}

/// Waits until all have ended. A signal to us is one to them. Returns the first exit status that is
/// not a success.
fn wait_for_all(mut machines: Vec<Machine>, cancel: &CancelHandle) -> Result<ExitCode, Failure> {
    let children = machines.iter().filter_map(|machine| {
        i32::try_from(machine.child.id())
            .ok()
            .and_then(Pid::from_raw)
    });
    let forward = cancel.also_unblock(Box::new(Forward(children.collect())));
    let mut worst = ExitCode::SUCCESS;
    let mut failed = false;
    for machine in &mut machines {
        let status = machine.child.wait().map_err(|cause| Failure::System {
            doing: "waiting for QEMU",
            cause,
        })?;
        if !status.success() && !failed {
            failed = true;
            worst = code(status);
        }
    }
    drop(forward);
    Ok(worst)
}

fn code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// Processes that get the signal that we have got.
struct Forward(Vec<Pid>);

impl Unblock for Forward {
    fn unblock(&self) {
        for &child in &self.0 {
            let signal = Signal::from_named_raw(signals::caught()).unwrap_or(Signal::TERM);
            // It may have ended.
            let _ = kill_process(child, signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_numbered() {
        assert_eq!(numbered("file:vm{n}.log".as_ref(), 3), "file:vm3.log");
        assert_eq!(numbered("{n}{n}{".as_ref(), 12), "1212{");
        assert_eq!(numbered("plain".as_ref(), 1), "plain");
    }
}
