//! `mcp`: the Model Context Protocol over standard input and output, for a client that starts the program.
//!
//! Standard output carries messages and nothing else: failures are logged to standard error. At the end of the input
//! the requests in progress are answered, and the process exits; at SIGTERM waits end at once, and effects that have
//! begun are completed and recorded. The program authenticates nobody here; the cluster authenticates the kubeconfig's
//! user.

use std::{
    collections::HashMap,
    io::{self, BufRead, Read, Write},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use crate::{
    actions::request::MAX_REQUEST_BYTES,
    cli::McpArgs,
    commands::run::{runtime, stop_on_signals},
    config::{McpSettings, Settings},
    contract::{error::ActionError, names::AuditText},
    executor::{
        context::{Context, stopped},
        reports::FLUSH_TIMEOUT,
    },
    mcp::{
        self, Exchange,
        calls::{Hold, Progression, Waits},
        protocol::{self, INITIALIZE, INVALID_REQUEST, Message, MessageId, ProtocolError, Request},
    },
};

/// Maximum number of requests at once; then no more are read.
const MAX_REQUESTS: usize = 64;

/// Maximum number of actions at once that continue after their answer.
const MAX_BACKGROUND: u32 = 128;

/// How long what is in progress may take once waits end: less than the 30 s that Kubernetes gives a pod.
const FINISH_TIMEOUT: Duration = Duration::from_secs(25);

/// How many lines wait between the threads of the streams and the runtime.
const BUFFERED_LINES: usize = 64;

/// Serves until the end of the input or SIGTERM; returns the exit status.
#[must_use]
pub fn run(args: &McpArgs, settings: &Settings) -> u8 {
    let served = runtime().and_then(|runtime| {
        let served = runtime.block_on(serve(args.context.as_deref(), settings));
        // A receipt that cannot be written must not keep the process.
        runtime.shutdown_background();
        served
    });
    served.map_or_else(|error| report(&error), |()| 0)
}

/// Reports why this command cannot run on standard error; returns the exit status.
#[must_use]
pub fn report(error: &ActionError) -> u8 {
    eprintln!("{}: {}", error.code, error.with_its_hint());
    error.code.exit_status()
}

async fn serve(kube_context: Option<&str>, settings: &Settings) -> Result<(), ActionError> {
    let (conclude, concluding) = watch::channel(false);
    let context = Context::connect(kube_context, settings, concluding).await?;
    let mut signalled = stop_on_signals()?;

    let (lines, mut input) = mpsc::channel(BUFFERED_LINES);
    thread::spawn(move || read_lines(io::stdin().lock(), &lines));
    let (output, lines) = mpsc::channel(BUFFERED_LINES);
    let (written, all_written) = oneshot::channel::<()>();
    thread::spawn(move || {
        write_lines(io::stdout().lock(), lines);
        drop(written);
    });

    let reports = context.reports().clone();
    let mut session = Session::new(context, settings.mcp, output.clone());
    loop {
        tokio::select! {
            line = input.recv() => match line {
                // A client that does not read must not keep the process from ending.
                Some(line) => tokio::select! {
                    () = session.take(line) => {}
                    () = stopped(&mut signalled) => break,
                },
                None => break,
            },
            () = stopped(&mut signalled) => break,
            // Nobody reads what is written.
            () = output.closed() => break,
        }
    }
    drop(output);
    tokio::select! {
        () = session.answered() => {}
        () = stopped(&mut signalled) => {}
    }
    conclude.send_replace(true);
    let finish = async {
        session.finish().await;
        // The sender is dropped, not used.
        let _ = all_written.await;
    };
    // A client that does not read does not keep the process.
    if timeout(FINISH_TIMEOUT, finish).await.is_err() {
        tracing::warn!("stopped with requests still in progress");
    }
    reports.flush(FLUSH_TIMEOUT).await;
    Ok(())
}

/// The requests of the one client.
struct Session {
    context: Context,
    settings: McpSettings,
    output: mpsc::Sender<String>,
    /// The client's program, if it began with a handshake.
    client: Option<AuditText>,
    requests: Arc<Semaphore>,
    background: Arc<Semaphore>,
    waits: Waits,
    tasks: JoinSet<()>,
    running: HashMap<MessageId, AbortHandle>,
}

impl Session {
    fn new(context: Context, settings: McpSettings, output: mpsc::Sender<String>) -> Self {
        Session {
            context,
            settings,
            output,
            client: None,
            requests: Arc::new(Semaphore::new(MAX_REQUESTS)),
            background: Arc::new(Semaphore::new(MAX_BACKGROUND as usize)),
            waits: Waits::default(),
            tasks: JoinSet::new(),
            running: HashMap::new(),
        }
    }

    async fn take(&mut self, line: Line) {
        let message = match &line {
            Line::Whole(text) if text.trim_ascii().is_empty() => return,
            Line::Whole(text) => protocol::read(text),
            Line::TooLong => {
                let what = format!("the message is longer than {MAX_REQUEST_BYTES} bytes");
                Err((None, ProtocolError::new(INVALID_REQUEST, what)))
            }
        };
        match message {
            Ok(Message::Request(request)) => self.begin(*request).await,
            Ok(Message::Notification(notification)) => {
                let cancelled = notification.cancelled().and_then(|id| self.running.remove(&id));
                if let Some(task) = cancelled {
                    task.abort();
                }
            }
            Err((id, error)) => self.send(protocol::error(id.as_ref(), &error)).await,
        }
    }

    /// Has a request answered by a task of its own.
    async fn begin(&mut self, request: Request) {
        let revision = match request.revision(None) {
            Ok(revision) => revision,
            Err(error) => return self.send(protocol::error(Some(&request.id), &error)).await,
        };
        if request.method == INITIALIZE {
            self.client = mcp::client_of_handshake(&request);
        }
        let lines = self.output.clone();
        let token = request.meta.progress_token.clone();
        // The semaphore is never closed.
        let permit = Arc::new(self.requests.clone().acquire_owned().await);
        // Where no more work may continue, the action holds the request's own permit, also once it is cancelled.
        let hold = match self.background.clone().try_acquire_owned() {
            Ok(permit) => Hold::Background(permit),
            Err(_) => Hold::Request(permit.clone()),
        };
        let exchange = Exchange {
            context: self.context.clone(),
            caller: None,
            client: self.client.clone(),
            revision,
            tools: self.settings.tools,
            wait: self.settings.wait,
            hold,
            permissions: Arc::default(),
            waits: self.waits.clone(),
            progression: token.map(|token| Progression { token, lines }),
        };
        let (id, output) = (request.id.clone(), self.output.clone());
        let task = self.tasks.spawn(async move {
            let _permit = permit;
            let line = match Box::pin(mcp::answer(exchange, &request)).await {
                Ok(result) => protocol::result(&request.id, result),
                Err(error) => protocol::error(Some(&request.id), &error),
            };
            // A client that is gone gets nothing.
            let _ = output.send(line).await;
        });
        while self.tasks.try_join_next().is_some() {}
        self.running.retain(|_, task| !task.is_finished());
        self.running.insert(id, task);
    }

    async fn send(&self, line: String) {
        let _ = self.output.send(line).await;
    }

    /// Returns when every request is answered.
    async fn answered(&mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    /// Returns when nothing is in progress.
    async fn finish(mut self) {
        self.answered().await;
        let _ = self.background.acquire_many(MAX_BACKGROUND).await;
        let _ = self.requests.acquire_many(MAX_REQUESTS as u32).await;
    }
}

/// A line of the input.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Whole(Vec<u8>),
    /// It was longer than a request may be, and is skipped.
    TooLong,
}

/// Reads lines until the end of the input, or until nobody takes them.
fn read_lines(mut input: impl BufRead, lines: &mpsc::Sender<Line>) {
    while let Ok(Some(line)) = read_line(&mut input) {
        if lines.blocking_send(line).is_err() {
            return;
        }
    }
}

/// The next line; at most as much of it is in memory as a request may be long.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    input.by_ref().take(MAX_REQUEST_BYTES as u64 + 1).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') || (!line.is_empty() && line.len() <= MAX_REQUEST_BYTES) {
        return Ok(Some(Line::Whole(line)));
    }
    if line.is_empty() {
        return Ok(None);
    }
    loop {
        let buffered = input.fill_buf()?;
        let (skipped, is_end) = match buffered.iter().position(|byte| *byte == b'\n') {
            Some(end) => (end + 1, true),
            None => (buffered.len(), buffered.is_empty()),
        };
        input.consume(skipped);
        if is_end {
            return Ok(Some(Line::TooLong));
        }
    }
}

/// Writes lines until there are no more, or nobody reads them.
fn write_lines(mut output: impl Write, mut lines: mpsc::Receiver<String>) {
    while let Some(line) = lines.blocking_recv() {
        if writeln!(output, "{line}").and_then(|()| output.flush()).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_the_next_one_is_read() {
        let longest = vec![b'x'; MAX_REQUEST_BYTES];
        let too_long = vec![b'y'; 1 << 20];
        let text = [b"a\r\n", &*longest, b"\n", &too_long, b"\n\nlast"].concat();
        // A small buffer: lines are longer than it.
        let mut input = io::BufReader::with_capacity(7, &*text);
        let mut next = || read_line(&mut input).expect("is read");
        assert_eq!(next(), Some(Line::Whole(b"a\r\n".to_vec())));
        assert_eq!(next(), Some(Line::Whole([&*longest, b"\n"].concat())));
        assert_eq!(next(), Some(Line::TooLong));
        assert_eq!(next(), Some(Line::Whole(b"\n".to_vec())));
        assert_eq!(next(), Some(Line::Whole(b"last".to_vec())));
        assert_eq!(next(), None);
    }
}
