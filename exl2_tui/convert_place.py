"""ConvertPlace: the Convert part of the app, wired. It costs nothing until somebody goes there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from exl2_tui.conversions import Conversions, ConvertService
from exl2_tui.core.events import Event, ModelInfo
from exl2_tui.core.job_events import ConvertChecked, JobEnded, JobFinished, JobsListed
from exl2_tui.core.requests import ConvertRequest
from exl2_tui.job_state import JobState
from exl2_tui.job_words import verdict
from exl2_tui.keymap import with_keys
from exl2_tui.state import Changes
from exl2_tui.text import one_line

if TYPE_CHECKING:
    from textual.screen import Screen

    from exl2_tui.app import Exl2App

ConvertFactory = Callable[[Callable[[Event], None]], ConvertService]


@runtime_checkable
class ShowsJobs(Protocol):
    """A screen that shows conversions."""

    def jobs_changed(self) -> None: ...


@runtime_checkable
class HearsCheck(Protocol):
    """The screen that sets a conversion up."""

    def checked(self, event: ConvertChecked) -> None: ...


class ConvertPlace:
    """What the screens of this place may do, and what the app asks of it."""

    def __init__(self, app: Exl2App, factory: ConvertFactory | None) -> None:
        self.app = app
        self._factory = factory or _real_service
        self._service: ConvertService | None = None
        self._jobs: Conversions | None = None
        self._wizard: Screen[None] | None = None
        self._greeting = False  # the list that was asked for tells what was interrupted

    @property
    def jobs(self) -> Conversions:
        """The conversions; asking for the first time starts the service."""
        if self._jobs is None:
            self._service = self._factory(self.app.push_event)
            self._jobs = Conversions(self._service, self.app.clock, self.app.wall_clock)
        return self._jobs

    @property
    def running(self) -> JobState | None:
        return self._jobs.running if self._jobs is not None else None

    def hears(self, event: Event) -> Changes | None:
        """Takes an event of the bridge; None if it is none of this place's."""
        if isinstance(event, ConvertChecked):
            for screen in self.app.drawn:
                if isinstance(screen, HearsCheck):
                    screen.checked(event)
            return Changes()
        if self._jobs is None:
            return None
        if not self._jobs.apply(event):
            if isinstance(event, JobEnded):  # about the list, or about something just deleted
                self.app.report(" ".join(filter(None, (event.message, event.hint))))
            return None
        if isinstance(event, JobFinished | JobEnded):
            self._announce(event)
        if isinstance(event, JobsListed) and self._greeting:
            self._greeting = False
            self._tell_interrupted()
        session = self.app.session
        badge = self._jobs.badge
        if badge == session.converting:
            return Changes(jobs=True)
        session.converting = badge
        return Changes(jobs=True, model=True)

    def greet(self) -> None:
        """At the start: a conversion whose process was ended is waiting for somebody to go on with it."""
        self._greeting = True
        self.jobs.refresh()

    def _tell_interrupted(self) -> None:
        job = next((job for job in reversed(self.jobs.jobs.values()) if job.status == "interrupted"), None)
        if job is not None:
            goes_on = with_keys("{app.convert} and {convert.resume} go on with it", self.app.key_overrides)
            self.app.say(f"The conversion of {one_line(job.name, 24)} was interrupted: {goes_on}")

    def repaint(self) -> None:
        """Some conversion changed."""
        for screen in self.app.drawn:
            if isinstance(screen, ShowsJobs):
                screen.jobs_changed()

    def open(self) -> None:
        """Shows the list, on top of the chat; from a screen of this place, goes back to it."""
        from exl2_tui.screens.convert import ConvertScreen

        if any(isinstance(screen, ConvertScreen) for screen in self.app.screen_stack):
            while not isinstance(self.app.screen, ConvertScreen):
                self.app.pop_screen()
            return
        self.app.action_place_chat()
        self.app.push_screen(ConvertScreen(self))
        self.jobs.refresh()

    def wizard(self, source: str = "") -> None:
        """Sets up a new conversion; one that was begun and left for another place goes on, unless a model is named."""
        from exl2_tui.screens.convert_wizard import WizardScreen

        if source or self._wizard is None:
            self.forget_wizard()
            self._wizard = WizardScreen(self, source)
            self.app.install_screen(self._wizard, "wizard")  # so that it stays when another place is gone to
        self.app.push_screen(self._wizard)

    def forget_wizard(self) -> None:
        """What was being set up has been started, or given up."""
        wizard, self._wizard = self._wizard, None
        if wizard is None:
            return
        shown = wizard.is_current
        if shown:
            self.app.pop_screen()
        self.app.uninstall_screen(wizard)
        if not shown:
            wizard.remove()

    def list_models(self) -> None:
        """Asks for the models of this machine; screens hear the answer."""
        if self.app.service is not None:
            self.app.service.list_models()

    def start(self, request: ConvertRequest) -> None:
        """Starts a conversion and shows it in place of the wizard."""
        job = self.jobs.start(request)
        self.forget_wizard()
        self.show(job)

    def show(self, job: JobState) -> None:
        """Shows one conversion."""
        from exl2_tui.screens.convert_progress import ProgressScreen

        self.app.push_screen(ProgressScreen(self, job.job))
        self.jobs.look(job)

    def chat_with(self, path: str) -> None:
        """Loads a finished model and goes to the chat."""
        self.app.load_model(path)

    def ask_delete(self, job: JobState, then: Callable[[], None]) -> None:
        """Asks what becomes of a conversion's files; `then` follows a decision other than to leave it alone."""
        from exl2_tui.screens.dialogs import ChoiceDialog

        def answered(choice: str | None) -> None:
            if choice == "keep" and job.active:
                self.jobs.pause(job)
            elif choice == "delete":
                self.jobs.delete(job)
            if choice in ("keep", "delete"):
                then()

        models = f" {len(job.info.models)} finished model inside it goes too." if _models_inside(job) else ""
        choices = [("leave", "Leave it alone"), ("delete", "Delete its work files for good")]
        if job.active:
            choices.insert(1, ("keep", "Stop it and keep the work files: resume any time"))
        title = "Cancel the conversion?" if job.active else "Delete the conversion?"
        text = f"{one_line(job.name, 40)} is at {job.share:.0%}. Work files: {one_line(job.job, 200)}.{models}"
        self.app.push_screen(ChoiceDialog(title, text, choices), answered)

    def ask_quit(self, leave: Callable[[], None]) -> bool:
        """While a conversion runs here: asks, and calls `leave` if the person wants to. False: nothing runs."""
        job = self.running
        if job is None:
            return False
        from exl2_tui.screens.dialogs import ChoiceDialog

        def answered(choice: str | None) -> None:
            if choice == "leave":
                leave()

        text = f"{one_line(job.name, 40)} is at {job.share:.0%}. What is finished is kept; " + with_keys(
            "{app.convert} and {convert.resume} go on with it, or exl2-tui jobs resume.", self.app.key_overrides
        )
        choices = [("stay", "Stay here"), ("leave", "Pause it and quit")]
        if not isinstance(self.app.screen, ChoiceDialog):
            self.app.push_screen(ChoiceDialog("A conversion is running", text, choices), answered)
        return True

    def close(self, timeout: float) -> None:
        """After the app has ended: the running job stops where it is."""
        if self._service is not None:
            self._service.close(timeout)

    def _announce(self, event: JobFinished | JobEnded) -> None:
        """Says that a job is over to whoever does not look at it."""
        from exl2_tui.screens.convert_progress import ProgressScreen

        screen = self.app.screen
        job = self.jobs.jobs.get(event.job)
        shows = with_keys("{app.convert} shows it.", self.app.key_overrides)
        if isinstance(event, JobFinished):
            for path in event.paths:  # so that Models lists it
                self.app.models.add_folder(str(Path(path).parent))
        if job is None or (isinstance(screen, ProgressScreen) and screen.job_name == event.job):
            return
        if isinstance(event, JobFinished):
            judged = [result.judged for result in job.results.values() if result.judged is not None]
            how = f" {verdict(judged[-1])[1]}." if judged else ""
            self.app.bell()
            self.app.notify(f"{one_line(job.name, 40)} is converted.{how} {shows}", timeout=10, markup=False)
        elif event.reason == "failed":
            text = f"The conversion of {one_line(job.name, 40)} stopped: {one_line(event.message, 200)}. {shows}"
            self.app.notify(text, severity="error", timeout=12, markup=False)


def convertible(models: tuple[ModelInfo, ...]) -> list[ModelInfo]:
    """Those that are not quantized yet."""
    return [model for model in models if not model.problem and model.format.lower() in ("fp16", "bf16", "fp32")]


def _models_inside(job: JobState) -> bool:
    return any(path.startswith(job.job) for path in job.info.models)


def _real_service(post: Callable[[Event], None]) -> ConvertService:
    from exl2_tui.jobs_service import JobService

    return JobService(post)
