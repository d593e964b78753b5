//! QEMU's control socket: one JSON object a line, each way.

use crate::qmp::QmpError;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a wait looks again.
const TICK: Duration = Duration::from_millis(100);
/// Longest line taken; QEMU's answers are far shorter.
const MAX_LINE: usize = 16 << 20;

/// When the guest last stopped and went on, by QEMU's clock.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Stops {
    stopped: Option<Duration>,
    resumed: Option<Duration>,
}

impl Stops {
    /// From the last stop to going on after it.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.resumed?.checked_sub(self.stopped?)
    }
}

/// A stream that a monitor listens at. Reads must end within about 100 ms if nothing comes, with
/// [`ErrorKind::TimedOut`] or [`ErrorKind::WouldBlock`].
pub trait QmpStream: Read + Write + Send {}

impl<S: Read + Write + Send> QmpStream for S {}

/// A connection to QEMU's monitor (QMP).
///
/// A QMP socket serves one client at a time.
pub struct Qmp {
    stream: BufReader<Box<dyn QmpStream>>,
    address: String,
    line: Vec<u8>,
    deadline: Duration,
    /// The number of the last command; answers carry their command's.
    last: u64,
    pub(super) stops: Stops,
}

impl std::fmt::Debug for Qmp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qmp")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Qmp {
    /// Connects to a monitor at a Unix socket; every answer must come within `deadline`.
    ///
    /// # Errors
    /// [`QmpError::Monitor`] if there is none, or another client is connected.
    pub fn connect_unix(path: &Path, deadline: Duration) -> Result<Self, QmpError> {
        let address = format!("unix:{}", path.display());
        let connected = UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(TICK))?;
            stream.set_write_timeout(Some(deadline))?;
            Ok(stream)
        });
        match connected {
            Ok(stream) => Self::over(Box::new(stream), &address, deadline),
            Err(error) => Err(QmpError::Monitor {
                address,
                why: error.to_string(),
            }),
        }
    }

    /// Speaks QMP over a stream that is connected to the monitor at `address`, a name for errors
    /// and journals; every answer must come within `deadline`.
    ///
    /// # Errors
    /// [`QmpError::Monitor`] if it is not QMP, or another client is connected.
    pub fn over(
        stream: Box<dyn QmpStream>,
        address: &str,
        deadline: Duration,
    ) -> Result<Self, QmpError> {
        let mut qmp = Self {
            stream: BufReader::new(stream),
            address: address.to_owned(),
            line: Vec::new(),
            deadline,
            // No number that the client before us may have used: its answers may come to us.
            last: u64::from(std::process::id()) << 20,
            stops: Stops::default(),
        };
        qmp.greet()?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Waits for QEMU's greeting. What it still had to say to the client before us comes first.
    fn greet(&mut self) -> Result<(), QmpError> {
        let end = Instant::now() + self.deadline;
        loop {
            let Some(message) = self.message_before(end)? else {
                return Err(self.failed(format!(
                    "it takes the connection and says nothing for {:?}. A QMP socket serves one client at a time: \
                     another one (libvirt, a script) is probably connected. Give QEMU a second -qmp socket for this \
                     program",
                    self.deadline
                )));
            };
            if message.get("QMP").is_some() {
                return Ok(());
            }
            let is_old = |name| message.get(name).is_some();
            if !["return", "error", "event"].into_iter().any(is_old) {
                return Err(self.failed(format!("it does not greet like QMP, but with {message}")));
            }
        }
    }

    /// The monitor's address.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    fn failed(&self, why: String) -> QmpError {
        QmpError::Monitor {
            address: self.address.clone(),
            why,
        }
    }

    /// The next message, if one comes soon, and before `end`.
    fn message(&mut self, end: Instant) -> Result<Option<Value>, QmpError> {
        loop {
            let result = self.stream.fill_buf().map(|bytes| {
                let end = bytes
                    .iter()
                    .position(|&byte| byte == b'\n')
                    .map(|at| at + 1);
                let taken = end.unwrap_or(bytes.len());
                self.line.extend(bytes.iter().take(taken));
                (taken, end.is_some())
            });
            match result {
                Ok((0, _)) => return Err(self.gone()),
                Ok((taken, whole)) => {
                    self.stream.consume(taken);
                    if !whole && Instant::now() >= end {
                        return Ok(None);
                    }
                    if self.line.len() > MAX_LINE {
                        return Err(self.failed("it sends a line without end".into()));
                    }
                    if whole {
                        let value = serde_json::from_slice(&self.line);
                        self.line.clear();
                        let value = value
                            .map_err(|e| self.failed(format!("it does not speak JSON: {e}")))?;
                        self.note(&value);
                        return Ok(Some(value));
                    }
                }
                Err(e) if [ErrorKind::TimedOut, ErrorKind::WouldBlock].contains(&e.kind()) => {
                    return Ok(None);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) if Instant::now() >= end => return Ok(None),
                Err(e)
                    if [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe].contains(&e.kind()) =>
                {
                    return Err(self.gone());
                }
                Err(e) => return Err(self.failed(e.to_string())),
            }
        }
    }

    fn gone(&self) -> QmpError {
        QmpError::Gone {
            address: self.address.clone(),
        }
    }

    /// Takes note of the guest's stops.
    fn note(&mut self, message: &Value) {
        let part = |name: &str| {
            message
                .pointer(&format!("/timestamp/{name}"))
                .and_then(Value::as_u64)
        };
        let time = part("seconds")
            .zip(part("microseconds"))
            .and_then(|(seconds, micros)| {
                Duration::from_secs(seconds).checked_add(Duration::from_micros(micros))
            });
        match message.get("event").and_then(Value::as_str) {
            Some("STOP") => {
                self.stops = Stops {
                    stopped: time,
                    resumed: None,
                }
            }
            Some("RESUME") => self.stops.resumed = time,
            _ => {}
        }
    }

    /// The next message; `None` if none comes in time.
    fn message_before(&mut self, end: Instant) -> Result<Option<Value>, QmpError> {
        loop {
            if let Some(message) = self.message(end)? {
                return Ok(Some(message));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
        }
    }

    /// Executes a command and returns its result.
    ///
    /// # Errors
    /// [`QmpError::Monitor`] with QEMU's words; [`QmpError::Gone`].
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        self.last += 1;
        let id = self.last;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        let written = self.stream.get_mut().write_all(line.as_bytes());
        written.map_err(|e| match e.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => self.gone(),
            _ => self.failed(format!("{command}: {e}")),
        })?;
        let end = Instant::now() + self.deadline;
        loop {
            // Events alone are no answer.
            let Some(mut message) = self.message_before(end)? else {
                return Err(self.failed(format!("{command}: no answer for {:?}", self.deadline)));
            };
            if message.get("id").is_some_and(|found| *found != id) {
                // A late answer to a command that was given up.
                continue;
            }
            if let Some(error) = message.get("error") {
                let words = error
                    .get("desc")
                    .and_then(Value::as_str)
                    .unwrap_or("an error without words");
                return Err(self.failed(format!("{command}: {words}")));
            }
            if let Some(result) = message.get_mut("return") {
                return Ok(result.take());
            }
            // Anything else is an event; states are asked for.
        }
    }

    /// What a command for people prints.
    pub(super) fn human(&mut self, command: &str) -> Result<String, QmpError> {
        let answer = self.execute("human-monitor-command", &json!({ "command-line": command }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Waits a moment: until an event comes, or a tick has passed.
    pub(super) fn pause(&mut self) -> Result<(), QmpError> {
        self.message(Instant::now() + TICK).map(drop)
    }

    /// The migration's state in QEMU's words, and why it failed, if it did.
    pub(super) fn migration(&mut self) -> Result<Migration, QmpError> {
        let info = self.execute("query-migrate", &json!({}))?;
        let text = |name: &str| info.get(name).and_then(Value::as_str).map(str::to_owned);
        let blockers = info.get("blocked-reasons").and_then(Value::as_array);
        Ok(Migration {
            status: text("status").unwrap_or_else(|| "none".into()),
            error: text("error-desc"),
            rounds: info
                .pointer("/ram/dirty-sync-count")
                .and_then(Value::as_u64)
                .unwrap_or(0),
            port: info
                .pointer("/socket-address/0/port")
                .and_then(Value::as_str)
                .map(str::to_owned),
            downtime: info
                .get("downtime")
                .and_then(Value::as_u64)
                .map(Duration::from_millis),
            blockers: blockers
                .into_iter()
                .flatten()
                .filter_map(|reason| reason.as_str().map(str::to_owned))
                .collect(),
        })
    }

    /// Cancels a migration that is under way, and waits until QEMU is done with it.
    pub(super) fn call_off(&mut self) -> Result<(), QmpError> {
        self.call_off_within(self.deadline)
    }

    /// Cancels a migration that is under way, and waits for QEMU to be done with it. Our
    /// connections should stay open until this returns; whatever a QEMU waits for that is not done
    /// by then, their end ends it.
    ///
    /// QEMU 10.0 dies of an assertion (`yank_unregister_instance`) if a connection breaks off, or
    /// it is told to cancel, while its channels are being set up: it is given time to get over
    /// that.
    pub(super) fn call_off_within(&mut self, time: Duration) -> Result<(), QmpError> {
        let end = Instant::now() + self.deadline;
        while self.migration()?.status == "setup" && Instant::now() < end {
            self.pause()?;
        }
        if self.migration()?.is_over() {
            return Ok(());
        }
        self.execute("migrate_cancel", &json!({}))?;
        let end = Instant::now() + time;
        while !self.migration()?.is_over() && Instant::now() < end {
            self.pause()?;
        }
        Ok(())
    }

    /// The guest's state after a migration: QEMU says that one is over a moment before the guest
    /// leaves the state finish-migrate, and does not let it run before that.
    pub(super) fn guest_afterwards(&mut self) -> Result<String, QmpError> {
        let end = Instant::now() + self.deadline;
        loop {
            let (_, state) = self.guest()?;
            if state != "finish-migrate" || Instant::now() >= end {
                return Ok(state);
            }
        }
    }

    /// Whether a migration is under way, or not cleaned up after yet. QEMU says that one is over
    /// while it still has its connections (`query-yank`). Told to migrate then, QEMU 10.0 refuses,
    /// and takes the refused migration for one that is under way ever after.
    pub(super) fn is_migrating(&mut self) -> Result<bool, QmpError> {
        let over = self.migration()?.is_over();
        let instances = match self.execute("query-yank", &json!({})) {
            // It came with QEMU 6.0.
            Err(QmpError::Monitor { .. }) => Value::Null,
            other => other?,
        };
        let migrates =
            |instance: &Value| instance.get("type").is_some_and(|kind| kind == "migration");
        Ok(!over
            || instances
                .as_array()
                .is_some_and(|list| list.iter().any(migrates)))
    }

    /// Whether the guest runs, and the state it is in, in QEMU's words.
    pub(super) fn guest(&mut self) -> Result<(bool, String), QmpError> {
        let info = self.execute("query-status", &json!({}))?;
        let running = info
            .get("running")
            .and_then(Value::as_bool)
            .unwrap_or(false);
        let status = info
            .get("status")
            .and_then(Value::as_str)
            .unwrap_or("unknown");
        Ok((running, status.to_owned()))
    }
}

/// What QEMU says of a migration.
pub(super) struct Migration {
    pub(super) status: String,
    pub(super) error: Option<String>,
    /// Rounds over dirty memory, as QEMU counts them.
    pub(super) rounds: u64,
    /// The port a destination listens on.
    pub(super) port: Option<String>,
    /// How long the guest stood still, by QEMU's measure.
    pub(super) downtime: Option<Duration>,
    /// Why QEMU would refuse to migrate.
    pub(super) blockers: Vec<String>,
}

impl Migration {
    /// Whether nothing is under way.
    pub(super) fn is_over(&self) -> bool {
        ["none", "completed", "failed", "cancelled"].contains(&self.status.as_str())
    }
}
