"""Every error that SeisBind raises on purpose.

    SeisBindError
    ├── InvalidGather (ValueError)        an uploaded or simulated gather cannot be used
    ├── InvalidSurvey (ValueError)        an acquisition geometry cannot be used
    ├── InvalidVelocityModel (ValueError) a velocity model cannot be used
    ├── InvalidQuery (ValueError)         top_k, a filter or a descriptor is not acceptable
    ├── InvalidConfig (ValueError)        a configuration or a command's argument is not acceptable
    ├── DatasetError (ValueError)         a dataset's files disagree with its layout
    ├── WeightsError (ValueError)         a weights file is damaged or of an unknown format
    ├── MissingExtra (ImportError)        an optional dependency is not installed
    ├── UnknownModel (KeyError)           no velocity model with that id
    ├── GalleryError (RuntimeError)       the gallery cannot do what was asked
    │   ├── GalleryNotFound               there is no gallery at that path
    │   ├── GalleryLocked                 another process holds the gallery for writing
    │   ├── GalleryDamaged                what is stored contradicts its own checksums
    │   ├── GalleryUnreachable             the gallery is in a server that does not answer in time
    │   ├── GalleryWriteFailed            the disk refused (full, read-only); nothing half-written counts
    │   ├── RemoteGalleryFailed           an object store did not give or take a published gallery
    │   └── WeightsMismatch               the gallery was made with other weights
    ├── JobError (RuntimeError)           jobs cannot do what was asked
    │   ├── UnknownJob (KeyError)         no job with that id
    │   ├── JobNotDone                    what a job has at its end was asked for before, or after another end
    │   ├── JobsOff                       this server takes no jobs
    │   ├── JobsFull                      as many jobs wait, or as many bytes are kept, as may be
    │   └── JobsWriteFailed               the disk refused; nothing half-written counts
    ├── UploadRefused (ValueError)        bytes that were sent cannot be read as what they should be
    │   ├── UnsupportedFormat             not npy, npz, SEG-Y, SU or SEG-2
    │   ├── MalformedUpload               a file that contradicts itself, or has the wrong content
    │   ├── UnsupportedDtype              not real numbers of a size that is read
    │   ├── UploadTooLarge                more bytes, members or gathers than the limits allow
    │   └── BodyTooSlow                   the bytes did not arrive in time
    └── ServiceError (RuntimeError)       the server cannot start or answer
        ├── PortTaken                     another program listens there
        ├── ServerUnreachable             no server answers at that address
        ├── ServerRefused                 a server answered a client's call with an error, whose code it carries
        ├── NotWritable                   this server does not change its gallery
        ├── KeyRequired                   a call without the API key that this server asks for
        ├── KeyUnknown                    a call with an API key that this server does not have
        ├── WriteScopeRequired            a call that may change something, with a key that may only read
        ├── Overloaded                    more requests than are received or worked on at once
        ├── NotReady                      the canary gather was not answered
        └── ReloadIncomplete              of several workers some go on with the gallery before

Each carries a stable ``code`` (for programs) and a sentence with the numbers in it that says what to do next.
"""

from __future__ import annotations

INTERNAL_ERROR = "internal_error"  # the code of what no error below stands for: a bug


class SeisBindError(Exception):
    """Base of the tree above. ``str(error)`` is a full sentence; ``code`` never changes between releases."""

    code: str = "seisbind_error"

    def __init__(self, sentence: str, /) -> None:
        super().__init__(sentence)
        self.sentence = sentence

    def __str__(self) -> str:  # KeyError would print the repr
        return self.sentence


class InvalidGather(SeisBindError, ValueError):
    code = "invalid_gather"


class InvalidSurvey(SeisBindError, ValueError):
    code = "invalid_survey"


class InvalidVelocityModel(SeisBindError, ValueError):
    code = "invalid_velocity_model"


class InvalidQuery(SeisBindError, ValueError):
    code = "invalid_query"


class InvalidConfig(SeisBindError, ValueError):
    code = "invalid_config"


class DatasetError(SeisBindError, ValueError):
    code = "dataset_error"


class WeightsError(SeisBindError, ValueError):
    code = "weights_error"


class MissingExtra(SeisBindError, ImportError):
    code = "missing_extra"


class UnknownModel(SeisBindError, KeyError):
    code = "unknown_model"


class GalleryError(SeisBindError, RuntimeError):
    code = "gallery_error"


class GalleryNotFound(GalleryError):
    code = "gallery_not_found"


class GalleryLocked(GalleryError):
    code = "gallery_locked"


class GalleryDamaged(GalleryError):
    code = "gallery_damaged"


class GalleryUnreachable(GalleryError):
    code = "gallery_unreachable"


class GalleryWriteFailed(GalleryError):
    code = "gallery_write_failed"


class RemoteGalleryFailed(GalleryError):
    code = "remote_gallery_failed"


class WeightsMismatch(GalleryError):
    code = "weights_mismatch"


class JobError(SeisBindError, RuntimeError):
    code = "job_error"


class UnknownJob(JobError, KeyError):
    code = "unknown_job"


class JobNotDone(JobError):
    code = "job_not_done"


class JobsOff(JobError):
    code = "jobs_off"


class JobsFull(JobError):
    code = "jobs_full"


class JobsWriteFailed(JobError):
    code = "jobs_write_failed"


class ServiceError(SeisBindError, RuntimeError):
    code = "service_error"


class UploadRefused(SeisBindError, ValueError):
    code = "upload_refused"


class UnsupportedFormat(UploadRefused):
    code = "unsupported_format"


class MalformedUpload(UploadRefused):
    code = "malformed_upload"


class UnsupportedDtype(UploadRefused):
    code = "unsupported_dtype"


class UploadTooLarge(UploadRefused):
    code = "upload_too_large"


class BodyTooSlow(UploadRefused):
    code = "body_too_slow"


class PortTaken(ServiceError):
    code = "port_taken"


class ServerUnreachable(ServiceError):
    code = "server_unreachable"


class ServerRefused(ServiceError):
    """What a server answered in place of what a client asked for (RFC 9457).

    Attributes:
        code: the server's own, or ``service_error`` where the answer has none.
        status: of HTTP.
        detail: the server's sentence, or the start of its answer where that is no problem document.
        request_id: under which the server's log has more; empty where it said none.
        retry_after_s: seconds that the server asks to wait before the call is repeated; None where it does not.
    """

    def __init__(
        self,
        sentence: str,
        /,
        *,
        code: str,
        status: int,
        detail: str,
        request_id: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(sentence)
        self.code = code
        self.status = status
        self.detail = detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class NotWritable(ServiceError):
    code = "not_writable"


class KeyRequired(ServiceError):
    code = "key_required"


class KeyUnknown(ServiceError):
    code = "key_unknown"


class WriteScopeRequired(ServiceError):
    code = "write_scope_required"


class Overloaded(ServiceError):
    code = "overloaded"


class DeadlinePassed(ServiceError):
    code = "deadline_passed"


class NotReady(ServiceError):
    code = "not_ready"


class ReloadIncomplete(ServiceError):
    """``errors``: a sentence for each worker that did not follow."""

    code = "reload_incomplete"

    def __init__(self, sentence: str, errors: tuple[str, ...] = ()) -> None:
        super().__init__(sentence)
        self.errors = errors
