"""The parts a phantom photograph is drawn from: clinic, eye, vessels, optic disc, lesions, camera."""
