"""Write README.md, with its pictures, from the notebook that settings.ini names."""
from fastcore.utils import Config

from pages import root, write_page

if __name__ == '__main__':
    settings = Config.find('settings.ini', root)
    paths = (settings.path(name) for name in ('readme_notebook', 'readme_page', 'readme_images'))
    write_page(*paths, target=lambda file, anchor: (file, anchor), anchors=False)
