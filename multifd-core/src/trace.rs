//! Spans and events, with the feature `tracing`; nothing without it.

/// Reports a decision, for this crate and those of the same workspace.
#[cfg(feature = "tracing")]
#[doc(hidden)]
#[macro_export]
macro_rules! event {
    ($($arg:tt)*) => {
        $crate::__tracing::debug!(target: "multifd", $($arg)*)
    };
}

/// Nothing, without the feature `tracing`; what would be reported is not even computed.
#[cfg(not(feature = "tracing"))]
#[doc(hidden)]
#[macro_export]
macro_rules! event {
    ($($arg:tt)*) => {};
}

/// A span that is entered until this is dropped.
#[cfg(feature = "tracing")]
pub(crate) type Entered = tracing::span::EnteredSpan;
#[cfg(not(feature = "tracing"))]
pub(crate) struct Entered;

/// The span of one channel's thread; `direction` is `"send"` or `"recv"`.
#[cfg(feature = "tracing")]
pub(crate) fn channel(direction: &'static str, channel: u8) -> Entered {
    tracing::info_span!(target: "multifd", "channel", direction, channel).entered()
}
#[cfg(not(feature = "tracing"))]
pub(crate) fn channel(_: &'static str, _: u8) -> Entered {
    Entered
}

/// The span of the end of a round, on the client's thread.
#[cfg(feature = "tracing")]
pub(crate) fn round(direction: &'static str, round: u64) -> Entered {
    tracing::info_span!(target: "multifd", "round", direction, round).entered()
}
#[cfg(not(feature = "tracing"))]
pub(crate) fn round(_: &'static str, _: u64) -> Entered {
    Entered
}

/// The span of a transfer, from its start to its end, whatever thread it is used on.
#[cfg(feature = "tracing")]
#[derive(Debug, Clone)]
pub(crate) struct Transfer(tracing::Span);
#[cfg(not(feature = "tracing"))]
#[derive(Debug, Clone)]
pub(crate) struct Transfer;

impl Transfer {
    #[cfg(feature = "tracing")]
    pub(crate) fn new(direction: &'static str) -> Self {
        Self(tracing::info_span!(target: "multifd", "transfer", direction))
    }
    #[cfg(not(feature = "tracing"))]
    pub(crate) fn new(_: &'static str) -> Self {
        Self
    }

    /// Enters the span on the calling thread.
    #[cfg(feature = "tracing")]
    pub(crate) fn enter(&self) -> Entered {
        self.0.clone().entered()
    }
    #[cfg(not(feature = "tracing"))]
    #[allow(clippy::unused_self)] // The same signature as with the feature.
    pub(crate) fn enter(&self) -> Entered {
        Entered
    }
}
