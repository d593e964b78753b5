//! What both engines are configured with.

use crate::{CancelHandle, Progress};
use std::sync::Arc;
use std::time::Duration;

/// Defines a configuration: fields, their defaults, and a setter for each.
#[doc(hidden)]
#[macro_export]
macro_rules! config {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* $field:ident : $type:ty = $default:expr, )*
        }
    ) => {
        $(#[$meta])*
        #[non_exhaustive]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $name {
            $(
                $(#[$field_meta])*
                #[must_use]
                pub fn $field(mut self, $field: $type) -> Self {
                    self.$field = $field;
                    self
                }
            )*
        }
    };
}

/// Setters of a configuration's [`Common`] part, so that it need not be named.
#[doc(hidden)]
#[macro_export]
macro_rules! common_setters {
    ($name:ident, $($path:ident).+) => {
        impl $name {
            /// Ends the transfer from elsewhere, and learns its first error: see
            /// [`Common::cancel`].
            ///
            /// [`Common::cancel`]: multifd_core::Common::cancel
            #[must_use]
            pub fn cancel(mut self, cancel: $crate::CancelHandle) -> Self {
                self.$($path).+.cancel = cancel;
                self
            }

            /// The clock of the transfer's connections: see [`Common::progress`].
            ///
            /// [`Common::progress`]: multifd_core::Common::progress
            #[must_use]
            pub fn progress(mut self, progress: std::sync::Arc<$crate::Progress>) -> Self {
                self.$($path).+.progress = progress;
                self
            }

            /// Called first on every thread of the engine: see [`Common::thread_start`].
            ///
            /// [`Common::thread_start`]: multifd_core::Common::thread_start
            #[must_use]
            pub fn thread_start(mut self, start: Option<$crate::ThreadStart>) -> Self {
                self.$($path).+.thread_start = start;
                self
            }

            /// Most bytes of payload a device-state packet carries: see
            /// [`Common::max_device_state`].
            ///
            /// [`Common::max_device_state`]: multifd_core::Common::max_device_state
            #[must_use]
            pub fn max_device_state(mut self, bytes: u32) -> Self {
                self.$($path).+.max_device_state = bytes;
                self
            }
        }
    };
}

/// The work of a thread that an engine has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ThreadRole {
    /// It sends on a channel.
    Send {
        /// The channel's number.
        channel: u8,
    },
    /// It receives on a channel.
    Receive {
        /// The order in which the channel was attached; its number is not known yet.
        order: u8,
    },
    /// It helps threads that receive, such as by populating memory for them.
    Helper,
}

/// Called first on a thread: the place to set its affinity, scheduling class, priority or cgroup.
///
/// Threads are named `multifd-send-N`, `multifd-recv-N` and `multifd-fault-N` before.
pub type ThreadStart = Arc<dyn Fn(ThreadRole) + Send + Sync>;

config! {
    /// The part of a configuration that both engines share.
    #[derive(Clone)]
    pub struct Common {
        /// The clock of the transfer's connections; touched when bytes move. Default: a deadline of
        /// 30 s.
        progress: Arc<Progress> = Arc::new(Progress::new(Duration::from_secs(30))),
        /// Ends the transfer from elsewhere, and learns its first error. Make one a transfer.
        cancel: CancelHandle = CancelHandle::default(),
        /// Most bytes of payload a device-state packet carries. Default: 16 MiB.
        max_device_state: u32 = 16 << 20,
        /// Called first on every thread of the engine.
        thread_start: Option<ThreadStart> = None,
    }
}

impl std::fmt::Debug for Common {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Common")
            .field("progress", &self.progress)
            .field("max_device_state", &self.max_device_state)
            .finish_non_exhaustive()
    }
}

impl Common {
    /// Runs the hook on the calling thread.
    pub(crate) fn started(&self, role: ThreadRole) {
        if let Some(start) = &self.thread_start {
            start(role);
        }
    }
}
