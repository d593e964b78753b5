//! QEMU's control socket: one JSON object a line, each way.

use super::stream::{QmpStream, pass};
use crate::qmp::QmpError;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::fd::BorrowedFd;
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

/// A connection to QEMU's monitor (QMP).
///
/// A QMP socket serves one client at a time.
pub struct Qmp {
    stream: BufReader<Box<dyn QmpStream>>,
    address: String,
    line: Vec<u8>,
    pub(super) deadline: Duration,
    /// The number of the last command; answers carry their command's.
    last: u64,
    /// An event has come since the last wait for one.
    has_news: bool,
    /// Capabilities that it has, on or off, if that was asked.
    pub(super) capabilities: Option<Vec<String>>,
    /// Questions that were sent before their answers are wanted.
    asked: Vec<Question>,
    pub(super) stops: Stops,
}

/// A command that was sent ahead.
struct Question {
    id: u64,
    command: &'static str,
    arguments: Value,
    /// What QEMU says, if that has come while another answer was awaited.
    answer: Option<Value>,
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
            has_news: false,
            capabilities: None,
            asked: Vec::new(),
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

    /// Whether descriptors can be passed to QEMU.
    #[cfg(feature = "file")]
    pub(super) fn passes_descriptors(&self) -> bool {
        self.stream.get_ref().unix_socket().is_some()
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
        self.execute_with(command, arguments, None)
    }

    /// Executes a command, and passes QEMU a descriptor with it.
    pub(super) fn execute_with(
        &mut self,
        command: &str,
        arguments: &Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        // What was asked before is no longer so.
        self.asked.clear();
        let (id, line) = self.line(command, arguments);
        self.send(command, line.as_bytes(), descriptor)?;
        self.answer(command, id)
    }

    /// Sends questions whose answers are wanted soon, by [`Qmp::ask`]: a process that has to share
    /// its processors is woken once instead of once for each. Anything else that is executed in
    /// between makes them void.
    pub(super) fn ask_ahead(
        &mut self,
        questions: &[(&'static str, Value)],
    ) -> Result<(), QmpError> {
        self.asked.clear();
        let mut lines = String::new();
        for (command, arguments) in questions {
            let (id, line) = self.line(command, arguments);
            lines.push_str(&line);
            self.asked.push(Question {
                id,
                command,
                arguments: arguments.clone(),
                answer: None,
            });
        }
        self.send("several questions", lines.as_bytes(), None)
    }

    /// Executes a question, unless it has been sent ahead.
    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let is =
            |question: &Question| question.command == command && question.arguments == *arguments;
        let Some(at) = self.asked.iter().position(is) else {
            return self.execute(command, arguments);
        };
        let question = self.asked.remove(at);
        match question.answer {
            Some(message) => self.read_answer(command, message),
            None => self.answer(command, question.id),
        }
    }

    fn line(&mut self, command: &str, arguments: &Value) -> (u64, String) {
        self.last += 1;
        let id = self.last;
        let line = json!({ "execute": command, "arguments": arguments, "id": id });
        (id, format!("{line}\n"))
    }

    fn send(
        &mut self,
        command: &str,
        bytes: &[u8],
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), QmpError> {
        let stream = self.stream.get_mut();
        let written = match descriptor {
            None => stream.write_all(bytes),
            Some(descriptor) => pass(stream.as_mut(), bytes, descriptor),
        };
        written.map_err(|e| match e.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => self.gone(),
            _ => self.failed(format!("{command}: {e}")),
        })
    }

    /// Waits for the answer to a command.
    fn answer(&mut self, command: &str, id: u64) -> Result<Value, QmpError> {
        let end = Instant::now() + self.deadline;
        loop {
            // Events alone are no answer.
            let Some(message) = self.message_before(end)? else {
                return Err(self.failed(format!("{command}: no answer for {:?}", self.deadline)));
            };
            if message.get("return").is_none() && message.get("error").is_none() {
                // An event; states are asked for.
                self.has_news = true;
                continue;
            }
            match message.get("id").and_then(Value::as_u64) {
                Some(found) if found != id => {
                    // To another question, or a late one to a command that was given up.
                    let mut asked = self.asked.iter_mut();
                    if let Some(question) = asked.find(|question| question.id == found) {
                        question.answer = Some(message);
                    }
                }
                _ => return self.read_answer(command, message),
            }
        }
    }

    fn read_answer(&self, command: &str, mut message: Value) -> Result<Value, QmpError> {
        if let Some(error) = message.get("error") {
            let words = error
                .get("desc")
                .and_then(Value::as_str)
                .unwrap_or("an error without words");
            return Err(self.failed(format!("{command}: {words}")));
        }
        Ok(message.get_mut("return").map_or(Value::Null, Value::take))
    }

    /// What a command for people prints.
    pub(super) fn human(&mut self, command: &str) -> Result<String, QmpError> {
        let answer = self.execute("human-monitor-command", &json!({ "command-line": command }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Waits a moment: until an event comes that was not waited for yet, or a tick has passed.
    pub(super) fn pause(&mut self) -> Result<(), QmpError> {
        // Their answers would be lost here.
        self.asked.clear();
        if std::mem::take(&mut self.has_news) {
            return Ok(());
        }
        self.message(Instant::now() + TICK).map(drop)
    }

    /// Whether the guest runs, and the state it is in, in QEMU's words.
    pub(super) fn guest(&mut self) -> Result<(bool, String), QmpError> {
        let info = self.ask("query-status", &json!({}))?;
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
