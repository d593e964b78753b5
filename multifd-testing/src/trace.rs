//! What the crates say with the feature `tracing`.

use multifd_core::sync::lock;
use std::fmt::{Debug, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// A subscriber that keeps spans and events of the target `multifd` as lines of text, such as
/// `span channel direction=send channel=0` and `event channels attached channels=2`.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    lines: Arc<Mutex<Vec<String>>>,
    spans: Arc<AtomicU64>,
}

impl Trace {
    /// Listens to all threads of this process from now on, which only one of a process can do.
    pub fn start() -> Self {
        let this = Self::default();
        tracing::subscriber::set_global_default(this.clone()).unwrap();
        this
    }

    /// The lines so far.
    pub fn lines(&self) -> Vec<String> {
        lock(&self.lines).clone()
    }

    fn note(&self, kind: &str, record: impl FnOnce(&mut Line)) {
        let mut line = Line {
            subject: String::new(),
            fields: String::new(),
        };
        record(&mut line);
        lock(&self.lines).push(format!("{kind} {}{}", line.subject, line.fields));
    }
}

struct Line {
    subject: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.subject = format!("{value:?}");
        } else {
            let _ = write!(self.fields, " {}={value:?}", field.name());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let _ = write!(self.fields, " {}={value}", field.name());
    }
}

impl Subscriber for Trace {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "multifd"
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        self.note("span", |line| {
            line.subject = span.metadata().name().into();
            span.record(line);
        });
        Id::from_u64(self.spans.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn event(&self, event: &Event<'_>) {
        self.note("event", |line| event.record(line));
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}
