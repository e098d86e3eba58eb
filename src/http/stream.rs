//! A client's connection as hyper reads and writes it.
//!
//! Below TLS, [`WriteTimeout`] ends a connection to which nothing can be written for a while. Above it,
//! [`ClientStream`] adds what hyper does not do: it answers a client that closes only its sending side, and it
//! leaves the response to malformed HTTP to the server. Knows neither a request nor a response.

use std::{
    io::{self, IoSlice},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

use crate::http::activity::Activity;

/// How long a client may take nothing of its response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream that fails when nothing could be written for [`WRITE_TIMEOUT`].
pub(crate) struct WriteTimeout<S> {
    stream: S,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteTimeout<S> {
    /// Times the writes of this stream.
    pub(crate) fn new(stream: S) -> Self {
        WriteTimeout { stream, stalled: None }
    }

    /// The result of a write, or that it takes too long.
    fn timed(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteTimeout<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteTimeout<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.timed(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.timed(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The stream that hyper gets.
pub(crate) struct ClientStream<S> {
    stream: S,
    activity: Arc<Activity>,
    /// Whether the client has closed its sending side.
    ended: bool,
    /// Set when it has, and waits for its response.
    half_closed: Option<Waker>,
    /// Whether hyper has answered malformed HTTP, which was not written.
    suppressed: bool,
}

impl<S> ClientStream<S> {
    /// The stream of a connection with this activity.
    pub(crate) fn new(stream: S, activity: Arc<Activity>) -> Self {
        ClientStream { stream, activity, ended: false, half_closed: None, suppressed: false }
    }

    /// The stream itself, and whether a response to malformed HTTP is to be written.
    pub(crate) fn into_parts(self) -> (S, bool) {
        (self.stream, self.suppressed)
    }

    /// Whether what is to be written is hyper's own response, to malformed HTTP: there is no request. The server
    /// sends one with a body in its place.
    fn suppresses(&mut self) -> bool {
        self.suppressed |= self.activity.is_waiting();
        self.suppressed
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.half_closed.is_some() && !self.activity.is_waiting() {
            self.half_closed = Some(context.waker().clone());
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        // hyper takes an end for a disconnect, and drops the request in progress.
        if self.activity.awaits_response() {
            self.half_closed = Some(context.waker().clone());
            return Poll::Pending;
        }
        // The end of the body may be known to hyper and not yet to the server, which is polled next.
        if !mem::replace(&mut self.ended, true) && !self.activity.is_waiting() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.suppresses() {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.suppresses() {
            return Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()));
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.activity.flushed();
        if self.activity.is_waiting()
            && let Some(waker) = self.half_closed.take()
        {
            waker.wake();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.suppressed {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
