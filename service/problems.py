"""Errors to HTTP (RFC 9457). The only module of the domain that knows of HTTP."""

from fastapi.responses import JSONResponse

from service import errors

STATUS: dict[type[errors.HotlineError], int] = {
    errors.Misconfigured: 500,
    errors.Invalid: 422,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Unavailable: 503,
    errors.CarrierFault: 502,
    errors.LedgerFault: 500,
    errors.VaultError: 500,
}


def status_of(error: errors.HotlineError) -> int:
    """Return the HTTP status of `error`: that of the nearest class in the tree that has one."""
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)


def problem_response(error: errors.HotlineError) -> JSONResponse:
    """Return `error` as ``application/problem+json``. Messages hold no word of a tip (service.errors)."""
    status = status_of(error)
    body = {
        "type": f"/problems/{type(error).__name__}",
        "title": type(error).__doc__,
        "status": status,
        "detail": str(error),
    }
    return JSONResponse(body, status, media_type="application/problem+json")
