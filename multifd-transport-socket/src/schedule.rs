//! How the system schedules threads that receive from sockets.

/// Has the calling thread no longer preempt others when it wakes up (`SCHED_BATCH`); for a
/// receiver's [`thread_start`](multifd_core::Common::thread_start).
///
/// Data waits in the socket's buffer anyway. On one host, a receiving thread that wakes for each
/// piece preempts the sender and finds little; one that waits finds more. It gets as much processor
/// time as before. For threads that send this would be wrong: beside a busy guest they would send
/// late.
///
/// A thread with another policy than `SCHED_OTHER` keeps it. Where the system refuses, nothing
/// changes. Under a seccomp filter: it calls `sched_getscheduler` and `sched_setscheduler`.
pub fn batch_scheduling() {
    let param = libc::sched_param { sched_priority: 0 };
    let this_thread: libc::c_long = 0;
    let batch = libc::c_long::from(libc::SCHED_BATCH);
    // The system's own calls: some C libraries have only stubs for these.
    // SAFETY: takes a number, returns one.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, this_thread) };
    if policy == libc::c_long::from(libc::SCHED_OTHER) {
        // SAFETY: reads `param`, which lives until it returns.
        unsafe {
            libc::syscall(
                libc::SYS_sched_setscheduler,
                this_thread,
                batch,
                &raw const param,
            )
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy_after(first: libc::c_int) -> libc::c_int {
        let thread = std::thread::spawn(move || {
            let param = libc::sched_param { sched_priority: 0 };
            // SAFETY: reads `param`, which lives until it returns.
            let set = unsafe { libc::sched_setscheduler(0, first, &raw const param) };
            assert_eq!(set, 0);
            batch_scheduling();
            // SAFETY: takes a number, returns one.
            unsafe { libc::sched_getscheduler(0) }
        });
        thread.join().unwrap()
    }

    #[test]
    fn the_usual_policy_gives_way_and_others_stay() {
        assert_eq!(policy_after(libc::SCHED_OTHER), libc::SCHED_BATCH);
        assert_eq!(policy_after(libc::SCHED_BATCH), libc::SCHED_BATCH);
        assert_eq!(policy_after(libc::SCHED_IDLE), libc::SCHED_IDLE);
    }
}
